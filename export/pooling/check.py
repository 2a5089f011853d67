"""Whether a split says what the graph says: in numbers, before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clusir.export.graph.session import Array, Probe
from clusir.export.pooling.split import Split
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.spec import ModelSpec

__all__ = ["SplitRun", "whole_window"]

_ROUNDING = 1e-4  # of the larger of 1 and the largest value
_OUTSIDE = 1e-3  # of the largest of a statistic's kin: what a window's surroundings may move it by


def whole_window(image: Array, count: int) -> dict[str, Array]:
    """What a statistics graph of ``count`` numbers is fed to pool all of ``image`` BxCxHxW, none of them known."""
    given, known = np.zeros((2, 1, count), np.float32)
    given[0, 0] = image.shape[2] * image.shape[3]
    return {"image": image, "weight": np.ones_like(image[:, :1]), "given": given, "known": known}


class SplitRun:
    """The two graphs, opened: ``pool`` for a picture's statistics, ``given`` for the tile graph under them."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._tile = Probe(split.tile, threads=1)
        self._statistics = Probe(split.statistics, threads=1)

    def pool(self, image: Array, weight: Array | None = None) -> Array:
        """Statistics [1, S] of the pixels of ``image`` 1xCxHxW that count (``weight`` 1x1xHxW; None: all)."""
        feeds = whole_window(image, self.split.count)
        if weight is not None:
            feeds["weight"] = weight
        return self._statistics.run(feeds)["statistics"]

    def given(self, statistics: Array) -> Callable[[Array], Array]:
        """The tile graph as a function of the picture."""
        return lambda image: self._tile.run({"image": image, "statistics": statistics})["restored"]

    def fault(self, whole: Callable[[Array], Array], reach_px: int, spec: ModelSpec) -> str:
        """What is wrong with the split; empty where nothing is.

        The tile graph under a picture's own statistics must answer as ``whole`` does; and a statistic of a part of the
        picture must not change with what lies further away from the part than ``reach_px``.
        """
        side = spec.size.padded(2 * reach_px + 160)
        picture = natural_picture(side, side, spec.planes)
        expected = whole(picture)
        given = self.given(self.pool(picture))
        got = given(picture)
        if not (float(np.abs(expected - got).max()) <= _ROUNDING * max(1.0, float(np.abs(expected).max()))):
            return "with its own statistics given, the graph answers something else"
        half = spec.size.padded(side // 3)
        near = slice(0, spec.scale * (half - reach_px))
        for turned in (False, True):
            part = picture[:, :, :half] if turned else picture[:, :, :, :half]
            alone = given(part)
            same = (alone[:, :, near], expected[:, :, near]) if turned else (alone[..., near], expected[..., near])
            if not (float(np.abs(same[0] - same[1]).max()) <= 10 * _OUTSIDE):
                return "a part of the picture, given the statistics of all of it, is answered as something else"
        for turned in (False, True):
            weight, changed = np.zeros((1, 1, side, side), np.float32), picture.copy()
            inside, outside = slice(0, half), slice(half + reach_px, None)
            counted = weight[:, :, inside] if turned else weight[..., inside]
            counted[:] = 1
            flipped = changed[:, :, outside] if turned else changed[..., outside]
            np.subtract(1, flipped, out=flipped)
            before, after = self.pool(picture, weight), self.pool(changed, weight)
            if not (float(np.abs(before - after).max()) <= _OUTSIDE * max(1e-3, float(np.abs(before).max()))):
                return "which of the pooled numbers belong to which pixels is not as assumed"
        return ""
