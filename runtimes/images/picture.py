"""What a picture file is, apart from its pixels: the facts that have to survive restoration."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["Extra", "Limits", "PictureInfo", "whole_ratio"]


@dataclass(frozen=True)
class Extra:
    """A piece of a file that is neither pixels nor one of :class:`PictureInfo`'s own fields.

    ``kind`` is a row of :data:`clusir.runtimes.images.metadata.keeping.ROWS`; ``data`` its bytes, ``name`` the chunk or
    segment that held it.
    """

    kind: str
    data: bytes
    name: str = ""


@dataclass(frozen=True)
class PictureInfo:
    """One picture file. ``channels``: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; ``dtype`` uint8, uint16, float32.

    ``width`` and ``height`` are upright, orientation applied, and ``dpi`` and ``aspect`` (the ratio of pixels a unit
    where the unit is not known) are of these axes. ``exif`` is the TIFF structure that EXIF is, without the
    ``Exif\\0\\0`` that JPEG puts before it; ``exif`` and ``xmp`` are true of the upright picture. ``lossless``:
    whether the file's coding is. ``notes`` say what could not be kept.
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
    aspect: tuple[float, float] | None = None
    extras: tuple[Extra, ...] = ()
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


def whole_ratio(pair: tuple[float, float], largest: int) -> tuple[int, int]:
    """Two positive numbers as whole ones of the same ratio, or as near as ``largest`` allows."""
    ratio = Fraction(pair[0] / pair[1]).limit_denominator(min(largest, 10_000))
    above, below = max(1, ratio.numerator), ratio.denominator
    return (above, below) if above <= largest else (largest, 1)
