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
_THIN_PX = 96  # across: enough for maps of an eighth to be maps
_PART = 1e-2  # of 0..1: what a part of a picture may be off, given the statistics of all of it
_OUTSIDE = 0.5  # of what the part itself moves its statistics by: others that count for it move them as much or more


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
        picture must not change with what lies further away from the part than ``reach_px``. Both along the rows and
        along the columns, on pictures no wider than that takes.
        """
        return self._fault(whole, reach_px, spec, turned=False) or self._fault(whole, reach_px, spec, turned=True)

    def _fault(self, whole: Callable[[Array], Array], reach_px: int, spec: ModelSpec, *, turned: bool) -> str:
        """The same along the rows, or (``turned``) along the columns."""
        thin, half = spec.size.padded(_THIN_PX), spec.size.padded((2 * reach_px + 160) // 3)
        long = spec.size.padded(max(2 * reach_px + 160, half + 2 * reach_px + 32))
        shape = (long, thin) if turned else (thin, long)
        picture = natural_picture(*shape, spec.planes)
        expected, statistics = whole(picture), self.pool(picture)
        given = self.given(statistics)
        got = given(picture)
        if not (float(np.abs(expected - got).max()) <= _ROUNDING * max(1.0, float(np.abs(expected).max()))):
            return "with its own statistics given, the graph answers something else"

        def along(image: Array, which: slice) -> Array:
            return image[:, :, which] if turned else image[..., which]

        near = slice(0, spec.scale * (half - reach_px))
        alone = given(along(picture, slice(0, half)))
        if not (float(np.abs(along(alone, near) - along(expected, near)).max()) <= _PART):
            return "a part of the picture, given the statistics of all of it, is answered as something else"
        weight = np.zeros((1, 1, *shape), np.float32)
        along(weight, slice(0, half))[:] = 1
        before = self.pool(picture, weight)

        def moved(which: slice) -> float:
            changed = picture.copy()
            flipped = along(changed, which)
            np.subtract(1, flipped, out=flipped)
            return float(np.abs(before - self.pool(changed, weight)).max())

        if not (moved(slice(half + reach_px, None)) <= _OUTSIDE * moved(slice(0, half))):
            return "which of the pooled numbers belong to which pixels is not as assumed"
        return ""
