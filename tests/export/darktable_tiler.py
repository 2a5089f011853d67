"""A copy, in numpy, of how darktable cuts a picture into tiles for a network and puts them together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clusir.export.formats.hosts.darktable import OVERLAP_PX

__all__ = ["mirrored", "tiled"]

Array = np.ndarray


def mirrored(start: int, length: int, whole: int) -> Array:
    """Indices start..start+length, folded back at both borders without repeating the edge."""
    period = max(2 * (whole - 1), 1)
    phase = np.arange(start, start + length) % period
    return np.minimum(phase, period - phase)


def tiled(run: Callable[[Array], Array], picture: Array, tile: int) -> Array:
    """``picture`` 1x3xHxW, sRGB-encoded, as darktable does it: below 0 cut off, above 1 not; square tiles, an overlap
    on each side that is thrown away, no blending, mirrored at the borders."""
    height, width = picture.shape[2:]
    given, made, step = np.maximum(picture, 0), np.empty_like(picture), tile - 2 * OVERLAP_PX
    for top in range(0, height, step):
        rows = mirrored(top - OVERLAP_PX, tile, height)
        for left in range(0, width, step):
            columns = mirrored(left - OVERLAP_PX, tile, width)
            answer = run(np.ascontiguousarray(given[:, :, rows][:, :, :, columns]))
            assert answer.shape == (1, 3, tile, tile)
            down, right = min(step, height - top), min(step, width - left)
            core = answer[:, :, OVERLAP_PX : OVERLAP_PX + down, OVERLAP_PX : OVERLAP_PX + right]
            made[:, :, top : top + down, left : left + right] = core
    return made
