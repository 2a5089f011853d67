"""Activation ranges: what each tensor spans on the calibration crops, and where to clip it.

Inside the experts only crops that the router sent there count: a dense graph computes every expert for every picture,
but what an expert makes of a picture that is not its own is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clusir.errors import CalibrationError
from clusir.export.graph.session import Array, Feeds, Probe
from clusir.export.quantize.layers import Graph, Layer

__all__ = [
    "CLIPPING", "HISTOGRAM_BINS", "Calibration", "Owners", "TensorRange", "clip_least_error", "collect_ranges",
    "owners_of",
]  # fmt: skip

Owners = dict[str, tuple[int, int]]
HISTOGRAM_BINS = 2048
_LEVELS = 255
_PERCENTILE = 99.99
# dB lost on noise, rain, low light (two crops each of CBSD68, late weights of tiny): 0.19, 0.26, 0.74 with 1; 0.25,
# 0.34, 0.08 with 5; 0.37, 0.58, -0.04 with 100. Dark pictures have the largest values, and are one in eleven.
_CLIPPED = 5.0


@dataclass
class TensorRange:
    """What one tensor spans: ``low`` <= 0 <= ``high``, and the mean of each channel (for bias correction)."""

    low: float = 0.0
    high: float = 0.0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    def widen(self, value: Array) -> None:
        self.low = min(self.low, float(value.min()))
        self.high = max(self.high, float(value.max()))
        if value.ndim == 4:
            mean = value.mean(axis=(0, 2, 3), dtype=np.float64)
            self.mean = mean if self.count == 0 else self.mean + (mean - self.mean) / (self.count + 1)
        self.count += 1


@dataclass(frozen=True)
class Calibration:
    """Inputs of one graph: ``feeds`` per crop, the crops' keys for messages, gates N x sum of experts (or N x 0)."""

    feeds: Sequence[Feeds]
    keys: Sequence[str]
    gates: Array
    experts: tuple[int, ...] = ()

    def serves(self, crop: int, owner: tuple[int, int] | None) -> bool:
        """Whether a crop counts for a tensor of ``owner``."""
        if owner is None or not self.experts or owner[1] < 0:
            return True
        return bool(self.gates[crop, sum(self.experts[: owner[0]]) + owner[1]] != 0)


def owners_of(graph: Graph, layers: Sequence[Layer]) -> Owners:
    """Tensors that belong to one expert alone: outputs of its layers, and whatever is computed from those only."""
    by_node = {layer.node: layer.expert for layer in layers if layer.expert is not None and layer.expert[1] >= 0}
    owners: Owners = {}
    for node in graph.model.graph.node:
        owner = by_node.get(node.name)
        if owner is None:
            varying = {name for name in node.input if name and name not in graph.initialisers}
            varying -= {n for n in varying if n in graph.producer and graph.producer[n].op_type == "Constant"}
            found = {owners.get(name) for name in varying}
            owner = found.pop() if len(found) == 1 else None
        if owner is not None:
            owners.update(dict.fromkeys(node.output, owner))
    return owners


def collect_ranges(
    graph: Graph, tensors: Sequence[str], calibration: Calibration, owners: Owners, clipping: str = "minmax"
) -> dict[str, TensorRange]:
    """The range of each tensor over the calibration crops, clipped as ``clipping`` says (a key of ``CLIPPING``).

    A tensor whose expert saw no crop is absent from the result. Raises CalibrationError on NaN or infinity.
    """
    probe = Probe(graph.model, tensors)
    ranges = {name: TensorRange() for name in tensors}
    for crop, feeds in enumerate(calibration.feeds):
        values = probe.run(feeds)
        for name in tensors:
            if not calibration.serves(crop, owners.get(name)):
                continue
            value = values[name]
            if not np.isfinite(value).all():
                raise CalibrationError(
                    f"tensor {name} is not finite for calibration crop {calibration.keys[crop]}; the float32 model "
                    "itself breaks on this picture: check it with clusir-verify"
                )
            ranges[name].widen(value)
    ranges = {name: found for name, found in ranges.items() if found.count}
    clip = CLIPPING[clipping]
    if clip is not None:
        for name, counts in _histograms(probe, ranges, calibration, owners).items():
            found = ranges[name]
            found.low, found.high = clip(counts, np.linspace(found.low, found.high, HISTOGRAM_BINS + 1))
    return ranges


def _histograms(
    probe: Probe, ranges: dict[str, TensorRange], calibration: Calibration, owners: Owners
) -> dict[str, NDArray[np.int64]]:
    counts = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name, found in ranges.items() if found.high > found.low}
    for crop, feeds in enumerate(calibration.feeds):
        values = probe.run(feeds)
        for name, total in counts.items():
            if calibration.serves(crop, owners.get(name)):
                found = ranges[name]
                index = (values[name].ravel() - found.low) * (HISTOGRAM_BINS / (found.high - found.low))
                total += np.bincount(np.clip(index.astype(np.int64), 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
    return counts


def _percentile(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[float, float]:
    """Leave out the same share of the values at either end, together 0.01 %; zero stays inside."""
    share = (100.0 - _PERCENTILE) / 200.0
    cumulated = np.cumsum(counts) / counts.sum()
    low = edges[np.searchsorted(cumulated, share, side="right")]
    high = edges[np.searchsorted(cumulated, 1.0 - share) + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def clip_least_error(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> tuple[float, float]:
    """The clipping whose sum of squared rounding and clipping errors is least, ends searched in turn.

    What is clipped weighs more: it comes from few pictures, and spoils those (see ``_CLIPPED``).
    """
    centres = (edges[:-1] + edges[1:]) / 2

    def error(low: float, high: float) -> float:
        step = max(high - low, 1e-12) / _LEVELS
        beyond = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
        return float((counts * np.where(beyond > 0, _CLIPPED * beyond**2, step**2 / 12)).sum())

    fractions = np.linspace(1.0, 0.2, 41)
    low, high = float(edges[0]), float(edges[-1])
    for _ in range(2):
        high = min((float(edges[-1]) * f for f in fractions), key=lambda end: error(low, end))
        low = min((float(edges[0]) * f for f in fractions), key=lambda end: error(end, high))
    return low, high


CLIPPING: dict[str, Callable[[NDArray[np.int64], NDArray[np.float64]], tuple[float, float]] | None] = {
    "minmax": None,
    "percentile": _percentile,
    "mse": clip_least_error,
}
