"""What a person without a network would use: classical filters, run on the same pixels for comparison.

Each baseline is told what degradation it faces, and the noise level where there is one, which the network is not. HxWx3
float32 in 0..1 in and out. scikit-image does the work; the dehazer is numpy, because no library here has one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clusir.errors import BackendError
from clusir.names import install_line

__all__ = ["BASELINES", "dehaze_dark_channel"]

Array = NDArray[np.float32]
Filter = Callable[[Array], Array]


def _nlm(sigma: float) -> Filter:
    """Non-local means, fast form, told sigma (units of 1/255): 5x5 patches, radius 6, h = 0.6 sigma."""

    def run(image: Array) -> Array:
        from skimage.restoration import denoise_nl_means

        s = sigma / 255.0
        out: Array = denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.6 * s, sigma=s, fast_mode=True, channel_axis=2
        )
        return out

    return run


def _tv(weight: float) -> Filter:
    """Total variation (Chambolle)."""

    def run(image: Array) -> Array:
        from skimage.restoration import denoise_tv_chambolle

        out: Array = denoise_tv_chambolle(image, weight=weight, channel_axis=2)
        return out

    return run


def _unsharp(radius_px: float, amount: float) -> Filter:
    def run(image: Array) -> Array:
        from skimage.filters import unsharp_mask

        out: Array = unsharp_mask(image, radius=radius_px, amount=amount, channel_axis=2)
        return out

    return run


def _median(image: Array) -> Array:
    """A horizontal median: streaks are thin across and long along the vertical."""
    from skimage.filters import median

    out: Array = median(image, np.ones((1, 5, 1), bool))
    return out


def _clahe(image: Array) -> Array:
    """Contrast-limited adaptive histogram equalisation of the value channel."""
    from skimage.exposure import equalize_adapthist

    out: Array = equalize_adapthist(image, clip_limit=0.01)
    return out


def _gamma(image: Array) -> Array:
    """The power that brings the mean to 0.45, the mean of an ordinary photo."""
    mean = float(np.clip(image.mean(), 1e-3, 0.999))
    return np.clip(image, 0, 1) ** np.float32(np.log(0.45) / np.log(mean))


def dehaze_dark_channel(image: Array, window_px: int = 15, omega: float = 0.95, floor: float = 0.1) -> Array:
    """He et al.'s dark channel prior (CVPR 2009), the transmission refined by a guided filter; HxWx3 in and out.

    Airlight: the mean colour of the haziest 0.1 % of pixels. t = 1 - omega * dark(I / A), at least ``floor``.
    """
    dark = _window_min(image.min(2), window_px)
    count = max(1, dark.size // 1000)
    haziest = np.argpartition(dark.ravel(), -count)[-count:]
    airlight = image.reshape(-1, 3)[haziest].mean(0).clip(0.05, 1.0)
    transmission = 1 - omega * _window_min((image / airlight).min(2), window_px)
    guide = image.mean(2)
    transmission = _guided(guide, transmission, radius=20, epsilon=1e-3).clip(floor, 1.0)[..., None]
    return np.asarray((image - airlight) / transmission + airlight, np.float32)


def _window_min(plane: Array, window_px: int) -> Array:
    """The minimum over a square window, borders repeated: rows first, then columns."""
    radius = window_px // 2
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        plane = np.lib.stride_tricks.sliding_window_view(np.pad(plane, pad, mode="edge"), window_px, axis).min(-1)
    return plane


def _box(plane: NDArray[np.floating], radius: int) -> NDArray[np.floating]:
    """The mean over a square window of 2 radius + 1, borders repeated."""
    size = 2 * radius + 1
    for axis in (0, 1):
        pad = [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)]
        total = np.cumsum(np.pad(plane.astype(np.float64), pad, mode="edge"), axis=axis)
        plane = (np.take(total, range(size, total.shape[axis]), axis)
                 - np.take(total, range(total.shape[axis] - size), axis)) / size  # fmt: skip
    return plane


def _guided(guide: Array, plane: Array, radius: int, epsilon: float) -> Array:
    """The guided filter (He et al. 2010) of ``plane`` by a grey ``guide``."""
    mean_guide, mean_plane = _box(guide, radius), _box(plane, radius)
    slope = (_box(guide * plane, radius) - mean_guide * mean_plane) / (
        _box(guide * guide, radius) - mean_guide**2 + epsilon
    )
    offset = mean_plane - slope * mean_guide
    result: Array = (_box(slope, radius) * guide + _box(offset, radius)).astype(np.float32)
    return result


def _chain(*filters: Filter) -> Filter:
    def run(image: Array) -> Array:
        for each in filters:
            image = np.clip(each(image), 0, 1).astype(np.float32)
        return image

    return run


BASELINES: dict[str, dict[str, Filter]] = {
    "noise 15": {"NLM": _nlm(15), "TV": _tv(0.06)},
    "noise 25": {"NLM": _nlm(25), "TV": _tv(0.1)},
    "noise 50": {"NLM": _nlm(50), "TV": _tv(0.2)},
    "jpeg 10": {"TV": _tv(0.03)},
    "jpeg 20": {"TV": _tv(0.015)},
    "jpeg 40": {"TV": _tv(0.008)},
    "rain heavy": {"median": _median, "TV": _tv(0.1)},
    "haze": {"dark channel": dehaze_dark_channel},
    "gaussian blur 1.5": {"unsharp": _unsharp(1.5, 1.5)},
    "motion blur 9": {"unsharp": _unsharp(2.5, 0.8)},
    "low light": {"CLAHE": _clahe, "gamma": _gamma},
    "noise 15 + jpeg 30": {"NLM": _nlm(13), "TV": _tv(0.05)},
    "rain + haze": {"dark channel": dehaze_dark_channel, "median, dark channel": _chain(_median, dehaze_dark_channel)},
    "blur + noise": {"NLM": _nlm(15), "NLM, unsharp": _chain(_nlm(15), _unsharp(1.5, 1.0))},
}
"""Row of the quality table -> what to compare with. Leaving the input as it is stands in every row anyway."""


def require_skimage() -> None:
    """Raises BackendError where scikit-image, which the baselines use, is not installed."""
    try:
        import skimage  # noqa: F401
    except ImportError as error:
        raise BackendError(f"the baselines need scikit-image; install it with: {install_line('skimage')}") from error
