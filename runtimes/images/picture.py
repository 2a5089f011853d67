"""What a picture file is, apart from its pixels: the facts that have to survive restoration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["READ_SUFFIXES", "SUFFIX_FORMATS", "WRITE_SUFFIXES", "Limits", "PictureInfo"]

SUFFIX_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
}
READ_SUFFIXES = tuple(SUFFIX_FORMATS)
# GIF holds 256 colours, too few for a restored picture.
WRITE_SUFFIXES = tuple(s for s in READ_SUFFIXES if s != ".gif")


@dataclass(frozen=True)
class PictureInfo:
    """One picture file. ``channels``: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; ``dtype`` uint8, uint16, float32.

    ``width`` and ``height`` are upright, orientation applied. ``exif`` is the TIFF structure that EXIF is, without the
    ``Exif\\0\\0`` that JPEG puts before it, its orientation reset; ``xmp`` likewise. ``png_chunks`` are chunks of a PNG
    that say how its numbers are meant (gAMA, cHRM, sRGB, cICP, pHYs). ``notes`` say what could not be kept.
    """

    format: str
    width: int
    height: int
    channels: int
    dtype: np.dtype[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    jpeg_tables: tuple[tuple[int, ...], ...] = ()
    jpeg_subsampling: int = -1
    lossless: bool = True
    notes: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    @property
    def bytes_decoded(self) -> int:
        """Bytes of the decoded pixels."""
        return self.width * self.height * self.channels * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Limits:
    """What is refused before anything of its size is allocated: ``pixels`` of a picture, ``decoded_bytes`` where the
    format has to be decoded in one piece, ``exif_bytes`` and ``icc_bytes`` of its metadata."""

    pixels: int = 1 << 29
    decoded_bytes: int = 4 << 30
    exif_bytes: int = 1 << 20
    icc_bytes: int = 16 << 20
