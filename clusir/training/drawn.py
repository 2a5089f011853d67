"""Pictures made by code that a restorer must leave alone: text, and walls that are almost flat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_pictures"]

_SIDE_PX = 384
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.;:-()&%"))


def draw_pictures(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """``count`` pictures of 384 px square, uint8 HxWx3, the same for the same ``seed``: a page, a flat wall, a page."""
    rng = np.random.default_rng(seed)
    return [(_page if index % 2 == 0 else _wall)(rng) for index in range(count)]


def _page(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lines of letters in several sizes, dark on light or light on dark."""
    paper, ink = rng.integers(215, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    page = Image.new("RGB", (_SIDE_PX, _SIDE_PX), tuple(int(v) for v in paper))
    pen, top = ImageDraw.Draw(page), int(rng.integers(4, 20))
    while top < _SIDE_PX:
        size = int(rng.choice((10, 12, 14, 18, 26)))
        words = ["".join(rng.choice(_LETTERS, int(rng.integers(1, 11)))) for _ in range(16)]
        font = ImageFont.load_default(size)
        pen.text((int(rng.integers(2, 40)), top), " ".join(words), fill=tuple(int(v) for v in ink), font=font)
        top += int(size * rng.uniform(1.2, 2.0))
    return np.asarray(page)


def _wall(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One colour under uneven light, with the least grain that keeps 8 bits from banding."""
    y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, _SIDE_PX),) * 2, indexing="ij")
    slope, bow = rng.uniform(-25.0, 25.0, 2), rng.uniform(-20.0, 20.0)
    light = slope[0] * x + slope[1] * y + bow * (x * x + y * y)
    wall = rng.uniform(20.0, 235.0, 3) + light[..., None] + rng.normal(0.0, 0.7, (_SIDE_PX, _SIDE_PX, 3))
    return np.rint(np.clip(wall, 0, 255)).astype(np.uint8)
