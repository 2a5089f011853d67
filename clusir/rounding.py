"""The arithmetic of rounding to integers, which the quantiser and quantisation-aware training share: numpy alone.

Where to clip what values span, scales of the channels of a map, and which convolutions are worth it at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLIPPING",
    "HISTOGRAM_BINS",
    "WORTH",
    "channel_scale",
    "clip_channels",
    "clip_least_error",
    "count_channels",
    "ends_of",
    "error_left",
    "even_scale",
    "evened",
    "is_dense",
    "moved_counts",
]

HISTOGRAM_BINS = 2048
_LEVELS = 255
_FRACTIONS = np.linspace(1.0, 0.2, 41)  # of the ends that are tried
_PERCENTILE = 99.99
# dB lost on noise, rain, low light (two crops each of CBSD68, late weights of tiny): 0.19, 0.26, 0.74 with 1; 0.25,
# 0.34, 0.08 with 5; 0.37, 0.58, -0.04 with 100. Dark pictures have the largest values, and are one in eleven.
_CLIPPED = 5.0
_LEAST_INTENSITY = 80
# A channel that is nearly silent on the calibration crops must not be blown up: on another picture it may speak.
_LARGEST_SPREAD = 100.0

# Below this share of the rounding error that one scale for all channels would make, the multiplication is worth it.
WORTH = 0.8


def is_dense(weight_shape: Sequence[int]) -> bool:
    """Whether a convolution of this weight shape is full of arithmetic, so that integer kernels make it faster.

    Depthwise ones and narrow 1x1 ones wait for memory: rounding them costs quality and buys hardly any time (see
    docs/quantisation.md). The bound of 1x1 convolutions is in multiply-accumulates per value read or written.
    """
    first, second, *kernel = weight_shape
    if int(np.prod(kernel)) > 1:
        return second > 1
    return first * second >= _LEAST_INTENSITY * (first + second)


def error_left(power: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
    """The expected rounding error of a layer's sums with a scale per input channel, relative to one for all channels.

    ``power``: the sum of the squared weights of each input channel. 1 where all weights are zero: nothing is to gain.
    """
    whole = power.sum() * scale.max() ** 2
    return float(np.sqrt((power * scale**2).sum() / whole)) if whole else 1.0


def channel_scale(peak: NDArray[np.float64], columns: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """What to divide each hidden channel by, of geometric mean 1; None where the map is silent or not finite.

    ``peak``: the largest absolute value of each channel; ``columns``: of the second weight's share of it.
    """
    if not np.isfinite(peak).all() or peak.max() <= 0:
        return None
    peak = np.maximum(peak, peak.max() / _LARGEST_SPREAD)
    columns = np.maximum(columns, max(columns.max() / _LARGEST_SPREAD, 1e-12))
    # Half of the spread goes to either side: the second weight's scale per output channel feels the rest.
    scale = np.sqrt(peak / columns)
    even: NDArray[np.float64] = scale / np.exp(np.log(scale).mean())
    return even


def even_scale(counts: NDArray[np.int64], peak: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scale of each channel, of geometric mean 1, from histograms C x bins over -``peak``..``peak`` (C).

    It is the larger end of the channel's own best range (see ``clip_least_error``).
    """
    return evened(ends_of(counts, peak))


def ends_of(counts: NDArray[np.int64], peak: NDArray[np.float64]) -> NDArray[np.float64]:
    """The larger end of each channel's own best range, from histograms C x bins over -``peak``..``peak`` (C)."""
    low, high = clip_channels(counts)
    ends: NDArray[np.float64] = np.maximum(np.maximum(-low, high) * peak, 1e-30)
    return ends


def evened(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to divide each channel by, of geometric mean 1, so that channels with these ends (C) are equally loud."""
    ends = np.maximum(ends, ends.max() / _LARGEST_SPREAD)
    even: NDArray[np.float64] = ends / np.exp(np.log(ends).mean())
    return even


def moved_counts(
    counts: NDArray[np.int64], peak: NDArray[np.float64], shift: NDArray[np.float64], moved: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Histograms C x bins over -``moved``..``moved`` (C) of what ``shift`` (C) was taken from, of those over
    -``peak``..``peak``."""
    channels = np.arange(len(counts))[:, None]
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) * (2 / HISTOGRAM_BINS) - 1
    places = (peak[:, None] * centres - shift[:, None]) / np.maximum(moved, 1e-30)[:, None]
    index = np.clip((places + 1) * (HISTOGRAM_BINS / 2), 0, HISTOGRAM_BINS - 1).astype(np.int64)
    index += channels * HISTOGRAM_BINS
    found = np.bincount(index.ravel(), weights=counts.ravel(), minlength=counts.size)
    return found.astype(np.int64).reshape(counts.shape)


def count_channels(value: NDArray[np.float32], peak: NDArray[np.float64]) -> NDArray[np.int64]:
    """Histograms C x bins of a map BxCxHxW, channel c over -peak_c..peak_c."""
    channels = value.shape[1]
    factor = (0.5 * HISTOGRAM_BINS / np.maximum(peak, 1e-30)).astype(np.float32)[:, None, None]
    index = np.clip(value * factor + np.float32(0.5 * HISTOGRAM_BINS), 0, HISTOGRAM_BINS - 1).astype(np.int32)
    index += (np.arange(channels, dtype=np.int32) * HISTOGRAM_BINS)[:, None, None]
    counts: NDArray[np.int64] = np.bincount(index.ravel(), minlength=channels * HISTOGRAM_BINS)
    return counts.reshape(channels, HISTOGRAM_BINS)


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
    low, high = _least(counts[None], _beyond(lows, highs, centres), np.subtract.outer(-lows, -highs))
    return float(lows[low[0]]), float(highs[high[0]])


def clip_channels(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for many histograms C x bins over -1..1 at once: their low and their high ends [C]."""
    low, high = _least(counts, _beyond_symmetric(), np.add.outer(_FRACTIONS, _FRACTIONS))
    return -_FRACTIONS[low], _FRACTIONS[high]


def _least(
    counts: NDArray[np.int64], beyond: NDArray[np.float64], widths: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which low and which high end leaves the least error of each histogram C x bins; ``beyond`` as :func:`_beyond`
    has it, ``widths`` [low, high]: from one end to the other.

    What lies beyond one end does not depend on the other: the errors of all pairs follow from a row for each end.
    """
    sums = (beyond @ counts.T.astype(np.float64)).reshape(2, 2, len(_FRACTIONS), -1)
    (clipped_low, under), (clipped_high, over) = sums  # [end, channel] each
    inside = counts.sum(axis=1) - under[:, None] - over  # low, high, channel
    step = np.maximum(widths, 1e-30) / _LEVELS
    errors = (step**2 / 12)[:, :, None] * inside + (clipped_low[:, None] + clipped_high)
    channels = np.arange(len(counts))
    low = high = np.zeros(len(channels), np.int64)
    for _ in range(2):
        high = np.argmin(errors[low, :, channels], axis=1)
        low = np.argmin(errors[:, high, channels], axis=0)
    return low, high


def _beyond(lows: NDArray[np.float64], highs: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4 x ends, bins]: for each low end the squared error of what it clips, for each whether it clips it; then the
    high ends."""
    under, over = np.maximum(lows[:, None] - centres, 0.0), np.maximum(centres - highs[:, None], 0.0)
    return np.concatenate([_CLIPPED * under**2, under > 0, _CLIPPED * over**2, over > 0])


@cache
def _beyond_symmetric() -> NDArray[np.float64]:
    centres = np.linspace(-1, 1, HISTOGRAM_BINS, endpoint=False, dtype=np.float64) + 1 / HISTOGRAM_BINS
    return _beyond(-_FRACTIONS, _FRACTIONS, centres)


CLIPPING: dict[str, Callable[[NDArray[np.int64], NDArray[np.float64]], tuple[float, float]] | None] = {
    "minmax": None,
    "percentile": _percentile,
    "mse": clip_least_error,
}
