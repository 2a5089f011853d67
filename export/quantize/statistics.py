"""What the maps of a graph hold on the calibration crops: one sweep for every step, channel by channel.

Each crop runs twice, first for the ends and means of every channel and the moments of every layer's input, then for
histograms between those ends. Whatever a step divides a channel by, its statistics are divided by as well; nothing is
measured again.

Inside the experts only crops that the router sent there count: a dense graph computes every expert for every picture,
but what an expert makes of a picture that is not its own is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from clusir.errors import CalibrationError
from clusir.export.graph.session import Probe
from clusir.export.quantize.layers import Graph
from clusir.export.quantize.ranges import Calibration, Owners, TensorRange
from clusir.rounding import CLIPPING, HISTOGRAM_BINS, clip_channels, count_channels, even_scale, moved_counts

__all__ = ["MapStatistics", "Moments", "Statistics", "record"]

Moments = Mapping[str, NDArray[np.float64]]
"""Layer name to the mean of x x^T over the patches x that the layer reads, in the order of its weights' rows."""


@dataclass(frozen=True)
class MapStatistics:
    """One map B x C x ...: ends and mean of each channel [C], and histograms [C, bins] over -peak..peak of each."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def peak(self) -> NDArray[np.float64]:
        """The largest absolute value of each channel."""
        return np.maximum(-self.low, self.high)

    @cached_property
    def even(self) -> NDArray[np.float64]:
        """What to divide each channel by so that all are equally loud: see :func:`clusir.rounding.even_scale`."""
        return even_scale(self.counts, self.peak)

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """The middle of each channel's own best range, zero included or not."""
        about = self.shifted(self.mean)
        low, high = clip_channels(about.counts)
        middle: NDArray[np.float64] = self.mean + about.peak * (low + high) / 2
        return middle

    def shifted(self, shift: NDArray[np.float64]) -> MapStatistics:
        """Of the map from whose channel c ``shift[c]`` is taken."""
        low, high = self.low - shift, self.high - shift
        counts = moved_counts(self.counts, self.peak, shift, np.maximum(-low, high))
        return replace(self, low=low, high=high, mean=self.mean - shift, counts=counts)

    def divided(self, scale: NDArray[np.float64]) -> MapStatistics:
        """Of the map whose channel c is divided by ``scale[c]`` > 0."""
        return replace(self, low=self.low / scale, high=self.high / scale, mean=self.mean / scale)

    def range(self, clipping: str) -> TensorRange:
        """What the whole map spans, zero included, clipped as ``clipping`` (a key of CLIPPING) says."""
        low, high = min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))
        clip = CLIPPING[clipping]
        if clip is not None and high > low:
            centres = (np.arange(HISTOGRAM_BINS) + 0.5) * (2 / HISTOGRAM_BINS) - 1
            places = (self.peak[:, None] * centres - low) * (HISTOGRAM_BINS / (high - low))
            index = np.clip(places.astype(np.int64), 0, HISTOGRAM_BINS - 1)
            whole = np.bincount(index.ravel(), weights=self.counts.ravel(), minlength=HISTOGRAM_BINS)
            low, high = clip(whole.astype(np.int64), np.linspace(low, high, HISTOGRAM_BINS + 1))
        return TensorRange(low, high, self.mean)


@dataclass(frozen=True)
class Statistics:
    """``maps`` by tensor, ``moments`` by layer. A map whose expert saw no crop is absent, though it is ``watched``."""

    maps: Mapping[str, MapStatistics] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)
    watched: frozenset[str] = frozenset()

    def with_maps(self, more: Mapping[str, MapStatistics]) -> Statistics:
        return replace(self, maps={**self.maps, **more})

    def with_inputs_divided(self, scales: Mapping[str, NDArray[np.float64]]) -> Statistics:
        """The moments of the layers named in ``scales``, whose input channels are divided by them."""
        found = dict(self.moments)
        for name, scale in scales.items():
            if name in found:
                factor = (1 / scale).repeat(len(found[name]) // len(scale))
                found[name] = found[name] * np.outer(factor, factor)
        return replace(self, moments=found)


def record(
    graph: Graph,
    tensors: Collection[str],
    moments_of: Mapping[str, NodeProto],
    calibration: Calibration,
    owners: Owners,
) -> Statistics:
    """The statistics of ``tensors`` (maps B x C x ...) and of what the layers ``moments_of`` (name to node) read.

    Raises CalibrationError on NaN or infinity.
    """
    from clusir.export.quantize.rounding import patches

    watched = sorted({*tensors, *(node.input[0] for node in moments_of.values())})
    if not watched:
        return Statistics()
    probe = Probe(graph.model, watched)
    ends: dict[str, list[NDArray[np.float64]]] = {}
    seen: dict[str, int] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    weights: dict[str, int] = {}
    for crop, feeds in enumerate(calibration.feeds):
        values = probe.run(feeds)
        for name in watched:
            if not calibration.serves(crop, owners.get(name)):
                continue
            value = _flat(values[name])
            if not np.isfinite(value).all():
                raise CalibrationError(
                    f"tensor {name} is not finite for calibration crop {calibration.keys[crop]}; the float32 model "
                    "itself breaks on this picture: check it with clusir-verify"
                )
            low, high = (end(value, axis=(0, 2)).astype(np.float64) for end in (np.min, np.max))
            mean = value.mean(axis=(0, 2), dtype=np.float64)
            before, seen[name] = ends.get(name, [low, high, mean]), seen.get(name, 0) + 1
            ends[name] = [
                np.minimum(before[0], low),
                np.maximum(before[1], high),
                before[2] + (mean - before[2]) / seen[name],
            ]
        for layer, node in moments_of.items():
            if calibration.serves(crop, owners.get(node.input[0])):
                rows = patches(values[node.input[0]], node, graph.initialisers[layer].dims)
                sums[layer] = sums.get(layer, 0.0) + (rows.T @ rows).astype(np.float64)
                weights[layer] = weights.get(layer, 0) + len(rows)
    counts = {name: np.zeros((len(found[0]), HISTOGRAM_BINS), np.int64) for name, found in ends.items()}
    for crop, feeds in enumerate(calibration.feeds):
        values = probe.run(feeds)
        for name, total in counts.items():
            if calibration.serves(crop, owners.get(name)):
                low, high = ends[name][:2]
                total += count_channels(_flat(values[name])[..., None], np.maximum(-low, high))
    maps = {n: MapStatistics(low, high, mean, counts[n]) for n, (low, high, mean) in ends.items()}
    return Statistics(maps, {layer: total / weights[layer] for layer, total in sums.items()}, frozenset(watched))


def _flat(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """B x C x pixels."""
    return value.reshape(*value.shape[:2], -1)
