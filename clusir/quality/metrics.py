"""PSNR and SSIM of HxWx3 float pictures in 0..1: the figures of every table that clusir prints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import BackendError, UsageError
from clusir.names import install_line

__all__ = ["psnr", "ssim"]

Array = NDArray[np.floating[Any]]


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB for values in 0..1, over all channels at once; ``inf`` where ``a`` equals ``b``.

    Computed in float64. Raises UsageError where the shapes differ.
    """
    _check(a, b)
    error = float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))
    return float("inf") if error == 0.0 else -10.0 * float(np.log10(error))


def ssim(a: Array, b: Array) -> float:
    """Structural similarity, mean over pixels and channels, with scikit-image's default 7x7 box window.

    Papers take the 11x11 Gaussian window of Wang et al. (2004), whose numbers are lower (0.479 where this is 0.511, on
    noise of sigma 15): do not compare the two.

    Raises UsageError where the shapes differ or a side is below 7 px, BackendError where scikit-image is not installed.
    """
    _check(a, b)
    if min(a.shape[:2]) < 7:
        raise UsageError(f"SSIM needs pictures of at least 7x7 px, these are {a.shape[1]}x{a.shape[0]}")
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise BackendError(f"SSIM needs scikit-image; install it with: {install_line('skimage')}") from error
    return float(structural_similarity(a, b, channel_axis=2, data_range=1.0))


def _check(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        shapes = " and ".join("x".join(map(str, array.shape)) for array in (a, b))
        raise UsageError(f"pictures to compare must have one shape, these have {shapes}")
