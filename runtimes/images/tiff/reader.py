"""TIFF: directories by tifffile, samples of any layout, rows in bands of strips or tiles."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError
from clusir.runtimes.images.metadata.orientation import upright
from clusir.runtimes.images.metadata.tags import LAYOUT_TAGS, PLACE_TAGS, Tag, build_block, read_ifd
from clusir.runtimes.images.metadata.truth import turned, upright_info
from clusir.runtimes.images.metadata.xmp import plain_xmp, xmp_orientation
from clusir.runtimes.images.picture import Extra, Limits, PictureInfo
from clusir.runtimes.images.tiff.page import (
    SEPARATED,
    WHITE_IS_ZERO,
    YCBCR,
    TiffPicture,
    opened_tiff,
    read_picture,
)
from clusir.runtimes.images.tiff.segments import JPEG_SCHEME, decode_segment

__all__ = ["TiffRows", "probe_tiff"]

_IPTC, _PHOTOSHOP, _LAYERS = 33723, 34377, 37724


def probe_tiff(path: Path, limits: Limits) -> tuple[PictureInfo, TiffPicture]:
    """The facts of a TIFF and the page they are of. Raises ImageError (see :func:`read_picture`)."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as block:
        _check_samples(*read_ifd(block))
    with opened_tiff(path) as tif:
        picture = read_picture(path, tif)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as block:
        order, tags = read_ifd(block, picture.directory)
        dropped = LAYOUT_TAGS if picture.orientation <= 1 else LAYOUT_TAGS | PLACE_TAGS
        exif = build_block(block, dropped, directory=picture.directory)
        kept = {n: bytes(tags[n].value) for n in (700, _IPTC, _PHOTOSHOP, 34675, _LAYERS) if n in tags}
        resolution = _resolution(order, tags)
    for name, number, bound in (("EXIF", 0, limits.exif_bytes), ("ICC", 34675, limits.icc_bytes)):
        size = len(kept.get(number, b"") if number else exif)
        if size > bound:
            raise ImageError(f"its {name} block of {size} bytes is over the {bound} allowed; strip it")
    if picture.photometric == SEPARATED and 34675 not in kept:
        raise ImageError("CMYK without an ICC profile: its colours are unknown; attach a profile or convert it to RGB")
    extras = [Extra("photoshop", kept[_PHOTOSHOP])] if _PHOTOSHOP in kept else []
    extras += [Extra("iptc", kept[_IPTC])] if _IPTC in kept else []
    notes = [*picture.notes, *_depth_notes(picture)]
    if 301 in tags:
        notes.append("its TransferFunction says what its numbers mean and is left out")
    if _LAYERS in kept:
        notes.append("Photoshop's layers are left out")
    if picture.orientation > 1 and PLACE_TAGS & tags.keys():
        notes.append("the georeference, which is that of the unturned picture, is left out")
    xmp = plain_xmp(kept.get(700))
    # TIFF's own tag counts; XMP's only where that is missing.
    orientation = picture.orientation or xmp_orientation(xmp) or 1
    picture = replace(picture, orientation=orientation)
    width, height = turned(picture.width, picture.height, orientation)
    info = PictureInfo(
        format="TIFF",
        width=width,
        height=height,
        channels=(1 if picture.colours == 1 and picture.palette is None else 3) + (picture.alpha is not None),
        dtype=_dtype(picture),
        icc=None if picture.photometric == SEPARATED else kept.get(34675) or None,
        exif=exif or None,
        xmp=xmp,
        extras=tuple(extras),
        notes=tuple(notes),
        **resolution,
    )
    return upright_info(info, orientation), picture


def _check_samples(order: str, tags: dict[int, Tag]) -> None:
    """Refuse samples of several kinds by their name: tifffile calls such a directory damaged."""
    for number, name in ((258, "depth"), (339, "format")):
        values = tags[number].value if number in tags and tags[number].kind == 3 else b""
        if len({values[i : i + 2] for i in range(0, len(values), 2)}) > 1:
            raise ImageError(f"a TIFF whose samples differ in {name} is not read; save it with 8 or 16 bit")


def _resolution(order: str, tags: dict[int, Tag]) -> dict[str, Any]:
    """``dpi`` where the unit is known, ``aspect`` where only the ratio is; nothing where the file says nothing."""
    x, y = (tags[n].ratio(order) if n in tags else None for n in (282, 283))
    if x is None or y is None or not (0 < x < 1e6 and 0 < y < 1e6):
        return {}
    unit = tags[296].integer(order) if 296 in tags else 2
    if unit in (2, 3):
        scale = 2.54 if unit == 3 else 1.0
        return {"dpi": (x * scale, y * scale)}
    return {"aspect": (x, y)} if unit == 1 and x != y else {}


def _dtype(picture: TiffPicture) -> np.dtype[Any]:
    if picture.layout.kind == "f":
        return np.dtype(np.float32)
    if picture.photometric == SEPARATED:
        return np.dtype(np.uint8)
    if picture.palette is not None:
        # Eight bits are enough for a table of v * 257 or v * 256, which is what nearly all are.
        low, high = picture.palette & 255, picture.palette >> 8
        return np.dtype(np.uint8 if bool(((low == 0) | (low == high)).all()) else np.uint16)
    return picture.layout.dtype


def _depth_notes(picture: TiffPicture) -> list[str]:
    bits, kind = picture.layout.bits, picture.layout.kind
    notes = []
    if picture.palette is not None:
        notes.append("the palette becomes RGB" + ("A" if picture.alpha is not None else ""))
    elif picture.photometric == SEPARATED:
        notes.append("CMYK becomes sRGB" + ("" if bits == 8 else f", {bits} bit become 8"))
    elif kind == "f" and bits != 32:
        notes.append(f"{bits}-bit floating point becomes 32-bit")
    elif kind == "u" and bits not in (8, 16):
        notes.append(f"{bits} bit becomes {8 if bits < 8 else 16} bit" + (" grey" if picture.colours == 1 else ""))
    return notes


class TiffRows:
    """The rows of a page. ``info`` and ``picture`` are :func:`probe_tiff`'s. Strips (or rows of tiles) are decoded when
    they are asked for, and the last ones kept; a page that has to be turned is decoded whole."""

    def __init__(self, path: Path, info: PictureInfo, picture: TiffPicture) -> None:
        self.height, self.width, self.channels = info.height, info.width, info.channels
        self._path, self._picture, self._dtype = path, picture, info.dtype
        self._cached: tuple[int, NDArray[Any]] | None = None
        self._convert = _from_cmyk(path, picture) if picture.photometric == SEPARATED else None
        self._whole = None if picture.orientation == 1 else upright(self._rows(0, picture.height), picture.orientation)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._rows(start, stop) if self._whole is None else self._whole[start:stop]

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        high = self._picture.segment[0]
        parts = []
        for index in range(start // high, -(-stop // high)):
            band = self._band(index)
            parts.append(band[max(0, start - index * high) : stop - index * high])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _band(self, index: int) -> NDArray[Any]:
        if self._cached is None or self._cached[0] != index:
            self._cached = None  # frees the last one before the next is made
            self._cached = (index, self._meant(self._stored(index)))
        return self._cached[1]

    def _stored(self, index: int) -> NDArray[Any]:
        """The samples of one row of strips or tiles, [rows, width, channels] as they are in the file."""
        page = self._picture
        high, wide = page.segment
        across = -(-page.width // wide)
        rows = min(high, page.height - index * high)
        planes = page.channels if page.planar else 1
        per_plane = across * -(-page.height // high)
        result = np.empty((rows, page.width, page.channels), page.layout.dtype)
        with self._path.open("rb") as stream:
            for plane in range(planes):
                for column in range(across):
                    at = plane * per_plane + index * across + column
                    stream.seek(page.offsets[at])
                    data = stream.read(page.counts[at])
                    if not page.offsets[at] or not data:
                        raise ImageError(f"truncated: strip or tile {at + 1} of {len(page.offsets)} is missing")
                    part = decode_segment(data, high if page.tiled else rows, wide, page.layout)
                    left = column * wide
                    target = (
                        result[:, left : left + wide, plane : plane + 1]
                        if page.planar
                        else result[:, left : left + wide]
                    )
                    target[...] = part[:rows, : target.shape[1]]
        return result

    def _meant(self, stored: NDArray[Any]) -> NDArray[Any]:
        """From stored samples to grey or RGB (and straight alpha) of the picture's dtype."""
        page = self._picture
        colours = stored[:, :, : page.colours]
        alpha = None if page.alpha is None else stored[:, :, page.alpha : page.alpha + 1]
        top = 1.0 if page.layout.kind == "f" else float((1 << page.layout.bits) - 1)
        if page.premultiplied and alpha is not None:
            colours = _straight(colours, alpha, self._dtype)
            return np.concatenate([colours, _scaled(alpha, page.layout.bits, self._dtype)], axis=2)
        if page.photometric == WHITE_IS_ZERO:
            colours = (np.asarray(top, colours.dtype) - colours).astype(colours.dtype)
        if page.palette is not None:
            table = page.palette.T if self._dtype == np.uint16 else (page.palette.T >> 8).astype(np.uint8)
            colours = table[stored[:, :, 0]]
        elif page.photometric == YCBCR and page.layout.compression != JPEG_SCHEME:
            colours = _to_rgb(colours, page.ycbcr)
        elif self._convert is not None:
            colours = self._convert(_scaled(colours, page.layout.bits, self._dtype))
        else:
            colours = _scaled(colours, page.layout.bits, self._dtype)
        if alpha is None:
            return colours
        return np.concatenate([colours, _scaled(alpha, page.layout.bits, self._dtype)], axis=2)


def _scaled(samples: NDArray[Any], bits: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """From 0..2^bits - 1 to the full range of ``dtype``; floating point as it is."""
    if dtype == np.float32:
        return samples.astype(np.float32)
    top, full = (1 << bits) - 1, int(np.iinfo(dtype).max)
    if top == full:
        return samples
    return ((samples.astype(np.uint32) * full + top // 2) // top).astype(dtype)


def _straight(colours: NDArray[Any], alpha: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Colours divided by their opacity, in the full range of ``dtype`` with one rounding; where opacity is 0 they are
    unknown, and 0."""
    there = alpha > 0
    if dtype == np.float32:
        opacity = np.where(there, alpha, 1).astype(np.float64)
        return np.where(there, colours / opacity, 0).astype(np.float32)
    full = int(np.iinfo(dtype).max)
    opacity = np.where(there, alpha, 1).astype(np.uint64)
    divided = (2 * colours.astype(np.uint64) * full + opacity) // (2 * opacity)
    return np.where(there, np.minimum(divided, full), 0).astype(dtype)


def _to_rgb(samples: NDArray[Any], ycbcr: tuple[tuple[float, ...], tuple[float, ...]]) -> NDArray[np.uint8]:
    """TIFF 6.0, section 21: codes to full range by reference black and white, then the inverse of the luminance."""
    (red, green, blue), r = ycbcr
    code = samples.astype(np.float32)
    y = (code[:, :, 0] - r[0]) * (255 / ((r[1] - r[0]) or 1))
    cb, cr = ((code[:, :, i] - r[2 * i]) * (127 / ((r[2 * i + 1] - r[2 * i]) or 1)) for i in (1, 2))
    out_red, out_blue = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    out_green = (y - red * out_red - blue * out_blue) / (green or 1)
    return np.clip(np.rint(np.stack([out_red, out_green, out_blue], axis=2)), 0, 255).astype(np.uint8)


def _from_cmyk(path: Path, picture: TiffPicture) -> Any:
    from clusir.runtimes.images.metadata.colour import cmyk_to_srgb

    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as block:
        profile = bytes(read_ifd(block, picture.directory)[1][34675].value)
    return cmyk_to_srgb(profile)
