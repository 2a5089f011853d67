"""Maps that come with a picture: the last planes of the input, behind one or three channels of colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["colours_of", "maps_for"]

_BLOBS = 3


def colours_of(planes: int) -> int:
    """How many of the ``planes`` of an input are a picture's own: 1 of one or two, else 3."""
    return 1 if planes <= 2 else 3


def maps_for(planes: int, height: int, width: int, seed: int) -> NDArray[np.float32]:
    """What to fill the maps of an input of so many ``planes`` with: NxHxW, none of them where it is a picture alone.

    By turns, from ``seed`` on, a mask (0 or 1, some holes) and numbers that rise slowly from 0 to 1: what is a number
    for each pixel is tried as one.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    made = np.zeros((planes - colours_of(planes), height, width), np.float32)
    for number, plane in enumerate(made, start=seed):
        if number % 2:
            plane[:] = (x + y) / 2
            continue
        for _ in range(_BLOBS):
            top, left, side = rng.uniform(0, 0.8), rng.uniform(0, 0.8), rng.uniform(0.15, 0.4)
            plane[(y >= top) & (y < top + side) & (x >= left) & (x < left + side)] = 1
    return made
