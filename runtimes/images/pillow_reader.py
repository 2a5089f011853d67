"""Every other picture file, decoded whole by Pillow: JPEG, WebP, BMP, TIFF, GIF, and the PNGs that do not stream.

Pillow reads 16-bit RGB TIFF as 8 bit by taking one byte of each sample. Its raw modes ``RGB;16L`` and ``RGB;16B`` take
the second and the first, so decoding twice keeps both (see :mod:`clusir.runtimes.images.png_reader`).
"""

from __future__ import annotations

import io
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from clusir.errors import ImageError
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.images.tiff_tags import build_block, read_ifd, reset_orientation, reset_xmp_orientation
from clusir.runtimes.images.tiff_writer import DESCRIPTIVE_TAGS

__all__ = ["PillowRows", "describe", "upright"]

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


def describe(image: Image.Image, path: Path, orientation: int) -> PictureInfo:
    """The facts of an opened, not yet decoded file whose pixels are to be turned by ``orientation``.

    Raises ImageError for a mode that is not restored.
    """
    if image.mode not in _MODES:
        raise ImageError(f"its {image.mode} pixels are not restored; convert it to 8 or 16 bit grey or RGB")
    target, note = _MODES[image.mode]
    transparent = "transparency" in image.info and image.mode in ("P", "L", "RGB")
    if transparent:
        target = "LA" if image.mode == "L" else "RGBA"
    mode = target or image.mode
    if image.mode == "CMYK" and not image.info.get("icc_profile"):
        raise ImageError("CMYK without an ICC profile: its colours are unknown; attach a profile or convert it to RGB")
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    if mode.startswith("I;16") or _sixteen_bit(image):
        dtype = np.dtype(np.uint16)
    elif mode == "F":
        dtype = np.dtype(np.float32)
    exif, xmp = _exif(image, path), image.info.get("xmp")
    turned = orientation >= 5
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    tables, sampling = _jpeg_facts(image) if jpeg else ((), -1)
    icc = None if image.mode == "CMYK" else image.info.get("icc_profile")
    return PictureInfo(
        format="JPEG" if image.format == "MPO" else str(image.format),
        width=image.height if turned else image.width,
        height=image.width if turned else image.height,
        channels=_CHANNELS[mode],
        dtype=dtype,
        icc=icc or None,
        exif=reset_orientation(exif) if exif else None,
        xmp=reset_xmp_orientation(xmp) if isinstance(xmp, bytes) else None,
        dpi=_dpi(image),
        jpeg_tables=tables,
        jpeg_subsampling=sampling,
        lossless=not jpeg and not (image.format == "WEBP" and _webp_is_lossy(path)),
        notes=(note,) if note else (),
    )


def _jpeg_facts(image: Any) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Quantisation tables in Pillow's order, and chroma subsampling (0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0, -1 = another)."""
    tables = tuple(tuple(table) for _, table in sorted(image.quantization.items()))
    return tables, JpegImagePlugin.get_sampling(image) if image.layers in (1, 3) else -1


def _sixteen_bit(image: Any) -> bool:
    """Whether Pillow would halve the samples: 16-bit RGB(A) TIFF, and interlaced 16-bit RGB(A) PNG."""
    return image.mode in ("RGB", "RGBA") and bool(image.tile) and all(";16" in _raw_mode(t.args) for t in image.tile)


def _raw_mode(args: Any) -> str:
    return str(args if isinstance(args, str) else args[0])


def _exif(image: Image.Image, path: Path) -> bytes | None:
    if image.format == "TIFF":  # BigTIFF, whose directories are laid out otherwise, gives none
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as block:
            return build_block(block, DESCRIPTIVE_TAGS) if read_ifd(block)[1] else None
    exif = image.info.get("exif")
    if not isinstance(exif, bytes) or not exif:
        return None
    return exif.removeprefix(b"Exif\0\0")


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    try:
        x, y = (float(v) for v in dpi) if dpi is not None else (0.0, 0.0)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _webp_is_lossy(path: Path) -> bool:
    """VP8 is lossy, VP8L lossless; in an extended file the first of either decides."""
    with path.open("rb") as stream:
        stream.seek(12)
        for _ in range(64):
            head = stream.read(8)
            if len(head) < 8:
                break
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8 ", b"VP8L"):
                return bool(kind == b"VP8 ")
            stream.seek(length + length % 2, 1)
    return True


class PillowRows:
    """The rows of a picture that Pillow has decoded. ``info`` is :func:`describe`'s, ``orientation`` the file's."""

    def __init__(self, image: Image.Image, info: PictureInfo, path: Path, orientation: int) -> None:
        self.height, self.width, self.channels = info.height, info.width, info.channels
        self._image: Image.Image | None = None
        self._pixels: NDArray[Any] | None = None
        if info.dtype == np.uint16 and image.mode in ("RGB", "RGBA"):
            self._pixels = upright(_both_bytes(image, path), orientation)
            return
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
    if image.mode == "CMYK":
        return _from_cmyk(image)
    target, _ = _MODES[image.mode]
    if "transparency" in image.info and image.mode in ("P", "L", "RGB"):
        target = "LA" if image.mode == "L" else "RGBA"
    return image.convert(target) if target else image


def _from_cmyk(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ImageError(f"its CMYK profile cannot be used ({error}); convert it to RGB") from error
    assert converted is not None
    return converted


def _array(image: Image.Image) -> NDArray[Any]:
    pixels = np.asarray(image)
    if pixels.dtype.byteorder == ">":
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _both_bytes(image: Image.Image, path: Path) -> NDArray[np.uint16]:
    """Decode twice: 16B and 16L name the byte order of the file, 16N this machine's; Pillow keeps the upper byte."""
    high = np.asarray(image).astype(np.uint16)
    high <<= 8
    again: Any
    with Image.open(path, formats=[str(image.format)]) as again:
        again.tile = [t._replace(args=_other_byte(t.args)) for t in again.tile]
        high |= np.asarray(again)
    return high


def _other_byte(args: Any) -> Any:
    raw = _raw_mode(args)
    native = "16B" if np.little_endian else "16L"
    other = {"16L": "16B", "16B": "16L", "16N": native}[raw.rpartition(";")[2]]
    changed = f"{raw.partition(';')[0]};{other}"
    return changed if isinstance(args, str) else (changed, *args[1:])


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """HxWxC turned as EXIF orientation 1..8 asks (views, no copies)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    # Now mirrored along x for 2, 3, 6, 7 and along y for 3, 4, 7, 8.
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
