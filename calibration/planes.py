"""The planes of an input: one or three channels of colours, and behind them the maps that come with a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["channels_fault", "colours_of", "maps_for"]

_BLOBS = 3


def colours_of(planes: int) -> int:
    """How many of the ``planes`` of an input are a picture's own: 1 of one or two, else 3."""
    return 1 if planes <= 2 else 3


def channels_fault(came: int, went: int) -> str:
    """Why a network from ``came`` to ``went`` channels restores no pictures, and what to do; empty where it does."""
    if came == went and came in (1, 3):
        return ""
    if came == 4:
        if went in (3, 4):
            return (
                "RGBA is taken as RGB with its alpha as a map, beside which there is none: leave --map out, or wrap the"
                " network so that it takes RGB and maps of one channel"
            )
        return "a restored picture has as many colours as came: wrap the network so that it returns RGB or RGBA"
    if (came, went) == (1, 3):
        return (
            "a restored picture has as many channels as came: wrap the network so that it takes RGB and makes it grey"
        )
    if came in (1, 3):
        return f"a restored picture has as many channels as came: wrap the network so that it returns {came}"
    return "pictures are given as grey or RGB: wrap the network so that it takes 1 channel or 3, and returns as many"


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
