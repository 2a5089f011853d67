"""Pictures that Pillow, or a plug-in of it, decodes whole: JPEG, WebP, BMP, GIF, AVIF, HEIF, JPEG XL."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from clusir.errors import ImageError
from clusir.runtimes.images.bmp_reader import BmpFields, read_fields, read_profile
from clusir.runtimes.images.jpeg_reader import coding_of, complete_jpeg, jpeg_facts
from clusir.runtimes.images.jxl_header import read_jxl
from clusir.runtimes.images.metadata.colour import cmyk_to_srgb
from clusir.runtimes.images.metadata.exif import plain_exif
from clusir.runtimes.images.metadata.jpeg_segments import parse_jpeg
from clusir.runtimes.images.metadata.orientation import upright
from clusir.runtimes.images.metadata.truth import orientation_of, turned, upright_info
from clusir.runtimes.images.metadata.xmp import plain_xmp
from clusir.runtimes.images.picture import Extra, Limits, PictureInfo
from clusir.runtimes.images.pillow_open import opened_by_pillow

__all__ = ["PillowRows", "WholeRows", "opened", "probe_with_pillow", "rgb_of"]

_REGISTERED = (WebPImagePlugin,)  # Pillow registers it only when it is imported; the others it knows at once
# Pillow's mode: the mode it is converted to (None: as it is), and what that loses.
_MODES: dict[str, tuple[str | None, str]] = {
    "L": (None, ""),
    "LA": (None, ""),
    "RGB": (None, ""),
    "RGBA": (None, ""),
    "I;16": (None, ""),
    "I;16B": (None, ""),
    "F": (None, ""),
    "1": ("L", "1 bit becomes 8 bit grey"),
    "La": ("LA", ""),
    "RGBa": ("RGBA", ""),
    "RGBX": ("RGB", ""),
    "YCbCr": ("RGB", ""),
    "P": ("RGB", "the palette becomes RGB"),
    "PA": ("RGBA", "the palette becomes RGBA"),
    "CMYK": ("RGB", "CMYK becomes sRGB"),
}
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1, "I;16B": 1, "F": 1}
_DTYPES = {"I;16": np.uint16, "I;16B": np.uint16, "F": np.float32}
_WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP ", b"ANIM", b"ANMF")
# Formats whose decoder turns the picture itself, so that EXIF's orientation is not to be applied again.
_TURNED_BY_DECODER = ("HEIF", "JXL")


@contextmanager
def opened(path: Path, kind: str, data: bytes | None = None) -> Iterator[Image.Image]:
    """A file of format ``kind`` in Pillow, from ``data`` where that is given. Raises ImageError where its header is
    damaged."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    elif kind == "JXL":
        import pillow_jxl  # noqa: F401
    source = path if data is None else io.BytesIO(data)
    try:
        with opened_by_pillow(source, [kind]) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ImageError(f"damaged: its {kind} header cannot be read") from error


class WholeRows:
    """The rows of pixels that are all there, HxWxC."""

    def __init__(self, pixels: NDArray[Any]) -> None:
        self.pixels = pixels

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self.pixels[start:stop]


def rgb_of(image: Image.Image) -> tuple[str, str]:
    """(the mode whose pixels are restored, what becoming it loses). Raises ImageError for modes that are not
    restored."""
    if image.mode not in _MODES:
        raise ImageError(f"its {image.mode} pixels are not restored; convert it to 8 or 16 bit grey or RGB")
    target, note = _MODES[image.mode]
    if "transparency" in image.info and image.mode in ("P", "L", "RGB"):
        target = "LA" if image.mode == "L" else "RGBA"
        note = "the palette becomes RGBA" if image.mode == "P" else ""
    if image.mode == "CMYK" and not image.info.get("icc_profile"):
        raise ImageError("CMYK without an ICC profile: its colours are unknown; attach a profile or convert it to RGB")
    return target or image.mode, note


def probe_with_pillow(
    path: Path, kind: str, limits: Limits, check: Callable[[int, int, float], None]
) -> tuple[PictureInfo, int, Any]:
    """(facts, orientation, a function that decodes to rows) of an opened, not yet decoded file; ``check`` may
    refuse it.

    Raises ImageError for several frames, and for a mode that is not restored.
    """
    fields = read_fields(path) if kind == "BMP" else None
    if fields is not None:
        return _probe_fields(path, fields, check)
    data, parts = None, None
    if kind == "JPEG":
        data = path.read_bytes()
        parts = parse_jpeg(data)
    jxl = read_jxl(path.read_bytes()) if kind == "JXL" else None
    if jxl is not None:
        check(jxl.width, jxl.height, 1)  # its plug-in decodes as soon as it opens
        if jxl.animated:
            raise ImageError("animated; extract the frame to restore")
    with opened(path, kind, data) as image:
        check(image.width, image.height, 1 / 8 if image.mode in ("1", "P") else len(image.getbands()))
        if getattr(image, "n_frames", 1) > 1 and kind not in ("JPEG", "HEIF"):
            raise ImageError(f"it has {getattr(image, 'n_frames', 1)} frames; extract the one to restore")
        mode, note = rgb_of(image)
        info = _described(image, path, kind, mode, [note] * bool(note))
        if parts is not None and data is not None:
            facts = jpeg_facts(data, parts, limits)
            tables, sampling = coding_of(image)
            info = _with(info, exif=facts.exif, xmp=facts.xmp, dpi=facts.dpi, aspect=facts.aspect,
                         extras=tuple(facts.extras), notes=(*info.notes, *facts.notes), lossless=False,
                         jpeg_tables=tables, jpeg_subsampling=sampling)  # fmt: skip
            if not parts.ended:
                complete_jpeg(data, parts)
        if jxl is not None:
            info = _with(info, xmp=plain_xmp(jxl.xmp))
            if jxl.bits > 8 and info.dtype == np.uint8:
                info = _with(info, notes=(*info.notes, f"{jxl.bits} bit become 8"))
    if info.exif is not None and len(info.exif) > limits.exif_bytes:
        raise ImageError(f"its EXIF block of {len(info.exif)} bytes is over the {limits.exif_bytes} allowed; strip it")
    orientation = 1 if kind in _TURNED_BY_DECODER else orientation_of(info.exif, info.xmp)
    width, height = turned(info.width, info.height, orientation)
    info = upright_info(_with(info, width=width, height=height), orientation)

    def decode() -> Any:
        ended = None if kind != "JPEG" else path.read_bytes()
        if ended is not None:
            ended = complete_jpeg(ended, parse_jpeg(ended))
        with opened(path, kind, ended) as image:
            return PillowRows(image, info, orientation)

    return info, orientation, decode


def _probe_fields(
    path: Path, fields: BmpFields, check: Callable[[int, int, float], None]
) -> tuple[PictureInfo, int, Any]:
    check(fields.width, fields.height, fields.bits / 8)
    icc, note = read_profile(path)
    info = PictureInfo(
        "BMP", fields.width, fields.height, len(fields.fields), fields.dtype, icc=icc, dpi=fields.dpi,
        notes=(note,) if note else (),
    )  # fmt: skip
    return info, 1, lambda: WholeRows(fields.read(path))


def _with(info: PictureInfo, **changes: Any) -> PictureInfo:
    from dataclasses import replace

    return replace(info, **changes)


def _described(image: Image.Image, path: Path, kind: str, mode: str, notes: list[str]) -> PictureInfo:
    icc, extras = image.info.get("icc_profile") or None, []
    if kind == "BMP":
        icc, note = read_profile(path)
        notes += [note] * bool(note)
    comment = image.info.get("comment")
    if kind == "GIF" and isinstance(comment, bytes):
        extras.append(Extra("comment", comment))
    if kind == "WEBP":
        unknown = sorted({name for name, _ in _webp_chunks(path) if name not in _WEBP_CHUNKS})
        notes += [f"further chunks ({', '.join(n.decode('latin1') for n in unknown)}) are left out"] * bool(unknown)
    if kind == "HEIF" and (image.info.get("depth_images") or image.info.get("aux")):
        notes.append("its depth and auxiliary pictures (gain map) are left out")
    depth = _coded_bits(image, path, kind)
    if depth > 8 and not mode.startswith("I;16"):
        notes.append(f"{depth} bit become 8")
    if kind == "HEIF" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"{getattr(image, 'n_frames', 1) - 1} further pictures of the file are left out")
    return PictureInfo(
        format=kind,
        width=image.width,
        height=image.height,
        channels=_CHANNELS[mode],
        dtype=np.dtype(_DTYPES.get(mode, np.uint8)),
        icc=None if image.mode == "CMYK" else icc,
        exif=plain_exif(image.info.get("exif")),
        xmp=plain_xmp(image.info.get("xmp")),
        dpi=_dpi(image) if kind in ("BMP", "GIF") else None,
        extras=tuple(extras),
        lossless=kind not in ("AVIF", "HEIF", "JXL") and not (kind == "WEBP" and _webp_is_lossy(path)),
        notes=tuple(notes),
    )


def _coded_bits(image: Image.Image, path: Path, kind: str) -> int:
    """Bits a sample that AVIF and HEIF say in their pixi box; 8 for others."""
    if kind == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if kind != "AVIF":
        return 8
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    at = head.find(b"pixi")
    return head[at + 9] if 0 <= at < len(head) - 9 and head[at + 8] else 8


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    try:
        x, y = (float(v) for v in dpi) if dpi is not None else (0.0, 0.0)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _webp_chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """(name, length) of the chunks, 64 at most."""
    with path.open("rb") as stream:
        stream.seek(12)
        for _ in range(64):
            head = stream.read(8)
            if len(head) < 8:
                return
            name, length = struct.unpack("<4sI", head)
            yield name, length
            stream.seek(length + length % 2, 1)


def _webp_is_lossy(path: Path) -> bool:
    """VP8 is lossy, VP8L lossless; in an extended file the first of either decides."""
    return next((name == b"VP8 " for name, _ in _webp_chunks(path) if name in (b"VP8 ", b"VP8L")), True)


class PillowRows:
    """The rows of a picture that Pillow has decoded. ``info`` is :func:`probe_with_pillow`'s, ``orientation`` the
    file's."""

    def __init__(self, image: Image.Image, info: PictureInfo, orientation: int) -> None:
        self.height, self.width, self.channels = info.height, info.width, info.channels
        self._image: Image.Image | None = None
        self._pixels: NDArray[Any] | None = None
        converted = _convert(image)
        converted.load()
        if orientation == 1:
            self._image = converted  # bands are copied out of it: Pillow's RGB takes 4 bytes a pixel, numpy's 3 more
        else:
            self._pixels = upright(_array(converted), orientation)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        if self._pixels is not None:
            return self._pixels[start:stop]
        assert self._image is not None
        return _array(self._image.crop((0, start, self.width, stop)))


def _convert(image: Image.Image) -> Image.Image:
    mode, _ = rgb_of(image)
    if image.mode == "CMYK":
        image.load()
        return Image.fromarray(cmyk_to_srgb(image.info["icc_profile"])(np.asarray(image)))
    return image.convert(mode) if mode != image.mode else image


def _array(image: Image.Image) -> NDArray[Any]:
    pixels = np.asarray(image)
    if pixels.dtype.byteorder == ">":
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
