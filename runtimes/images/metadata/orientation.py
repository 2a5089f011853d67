"""Pixels turned as EXIF's orientation asks."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["upright"]


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
