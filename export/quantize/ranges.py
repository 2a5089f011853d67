"""Activation ranges: what a calibration holds, whose maps are whose, and where to clip what they span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.export.graph.session import Array, Feeds
from clusir.export.quantize.layers import Graph, Layer

__all__ = [
    "CLIPPING",
    "HISTOGRAM_BINS",
    "Calibration",
    "Owners",
    "TensorRange",
    "clip_channels",
    "clip_least_error",
    "owners_of",
]

Owners = dict[str, tuple[int, int]]
HISTOGRAM_BINS = 2048
_LEVELS = 255
_FRACTIONS = np.linspace(1.0, 0.2, 41)  # of the ends that are tried
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
    lows, highs = float(edges[0]) * _FRACTIONS, float(edges[-1]) * _FRACTIONS
    centres: NDArray[np.float64] = (edges[:-1] + edges[1:]).astype(np.float64) / 2
    low = high = 0
    for _ in range(2):
        high = int(np.argmin(_errors(lows[low], highs[:, None], centres) @ counts))
        low = int(np.argmin(_errors(lows[:, None], highs[high], centres) @ counts))
    return float(lows[low]), float(highs[high])


def clip_channels(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for many histograms C x bins over -1..1 at once: their low and their high ends [C]."""
    errors = (_symmetric_errors() @ counts.T).reshape(len(_FRACTIONS), len(_FRACTIONS), -1)  # low, high, channel
    channels = np.arange(counts.shape[0])
    low = high = np.zeros(len(channels), np.int64)
    for _ in range(2):
        high = np.argmin(errors[low, :, channels], axis=1)
        low = np.argmin(errors[:, high, channels], axis=0)
    return -_FRACTIONS[low], _FRACTIONS[high]


def _errors(low: Any, high: Any, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squared error of a value in each bin for ranges low..high (broadcast against the bins)."""
    step = np.maximum(high - low, 1e-30) / _LEVELS
    beyond = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
    return np.where(beyond > 0, _CLIPPED * beyond**2, step**2 / 12)


@cache
def _symmetric_errors() -> NDArray[np.float64]:
    """[pairs of ends, bins] for histograms over -1..1."""
    centres = np.linspace(-1, 1, HISTOGRAM_BINS, endpoint=False, dtype=np.float64) + 1 / HISTOGRAM_BINS
    return np.concatenate([_errors(-low, _FRACTIONS[:, None], centres) for low in _FRACTIONS])


CLIPPING: dict[str, Callable[[NDArray[np.int64], NDArray[np.float64]], tuple[float, float]] | None] = {
    "minmax": None,
    "percentile": _percentile,
    "mse": clip_least_error,
}
