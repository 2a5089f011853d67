"""The graph after each pass against the graph before all of them, so that a difference has the name of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from clusir.export.graph.session import Array, Probe
from clusir.export.validate.compare import check, compare
from clusir.export.validate.feeds import random_feeds
from clusir.export.validate.tolerances import tolerance

__all__ = ["ParityAfterEach", "parity_at"]

# What float32 itself does to an ill-conditioned graph is allowed a pass, up to the ceiling.
_ROUNDING_FACTOR, _ROUNDING_CEILING = 8.0, 1e-2


class ParityAfterEach:
    """For ``Pipeline(after_each=...)``: runs the graph in ONNX Runtime, unoptimised, on ``feeds``, and compares every
    output with what ``model``, the graph before the first pass, answered.

    Raises ValidationError where they differ; the pipeline names the pass. A model that draws random numbers, or answers
    with values that are not finite, cannot be compared: that is an error too.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
        self._feeds = dict(feeds)
        self._before = Probe(model, optimise=False)
        self._expected = self._before.run(self._feeds)

    def __call__(self, name: str, model: onnx.ModelProto) -> None:
        found = Probe(model, optimise=False).run(self._feeds)
        bound = tolerance("brought")
        agreement = compare(self._expected, found, bound)
        if not agreement.ok and np.isfinite(agreement.max_abs):
            own = self._rounding()
            allowed = min(_ROUNDING_FACTOR * own, _ROUNDING_CEILING)
            if allowed > (bound.max_abs or 0.0):
                wider = replace(bound, max_abs=allowed, psnr_db=-20 * float(np.log10(allowed)))
                agreement = compare(self._expected, found, wider)
        check(agreement, "the graph answers otherwise than before it")

    def _rounding(self) -> float:
        """How far the graph's own answer moves where its floating-point inputs move by one rounding."""
        moved = {
            name: array * np.asarray(1 + 2**-23, array.dtype) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in self._feeds.items()
        }
        return compare(self._expected, self._before.run(moved), tolerance("brought")).max_abs


def parity_at(model: onnx.ModelProto, sizes: Sequence[tuple[int, int]], channels: int) -> ParityAfterEach:
    """The comparison on seeded pictures of the first of ``sizes`` (height, width) that ``model`` runs at; the last of
    them is one that it must run at."""
    for size in sizes[:-1]:
        try:
            return ParityAfterEach(model, random_feeds(model, size, channels))
        except Exception:  # the runtime's own types: a size that the code of the trace does not take
            continue
    return ParityAfterEach(model, random_feeds(model, sizes[-1], channels))
