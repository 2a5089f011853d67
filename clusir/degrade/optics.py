"""Blur: what the lens and the shutter do to a picture, as explicit kernels and one FFT convolution.

Pictures are HxWx3 float32 arrays in 0..1 (the stored values: no gamma is undone). Lengths are in pixels, angles
in degrees, counter-clockwise from the x axis. numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["disk_kernel", "filter_image", "gaussian_kernel", "line_kernel"]

Array = NDArray[np.float32]


def gaussian_kernel(sigma_px: float) -> Array:
    """A normalised Gaussian of standard deviation ``sigma_px``, cut at 3 sigma; odd square shape."""
    radius = max(1, int(np.ceil(3.0 * sigma_px)))
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    line = np.exp(-0.5 * (x / max(sigma_px, 1e-6)) ** 2)
    kernel = np.outer(line, line)
    return np.asarray(kernel / kernel.sum(), np.float32)


def disk_kernel(radius_px: float) -> Array:
    """A normalised disk (the circle of confusion of an out-of-focus lens) with an edge one pixel soft."""
    reach = int(np.ceil(radius_px + 0.5))
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    distance = np.hypot(axis[:, None], axis[None, :])
    kernel = np.clip(radius_px + 0.5 - distance, 0.0, 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


def line_kernel(length_px: float, angle_deg: float, bend: float = 0.0, width_px: float = 0.0) -> Array:
    """A normalised streak of ``length_px``: the path of a moving camera, or of a drop of rain.

    ``bend`` bows the path sideways by that fraction of half its length; ``width_px`` > 0 widens it by a Gaussian of
    that standard deviation. The path is sampled four times a pixel and splatted bilinearly: smooth at any angle.
    """
    half = max(length_px - 1.0, 0.0) / 2.0
    t = np.linspace(-1.0, 1.0, max(2, int(np.ceil(4 * half)) + 1))
    along, across = t * half, bend * half * (t * t - 1.0 / 3.0)
    theta = np.deg2rad(angle_deg)
    x = along * np.cos(theta) - across * np.sin(theta)
    y = -(along * np.sin(theta) + across * np.cos(theta))
    reach = int(np.ceil(half * (1.0 + abs(bend)))) + 1 + int(np.ceil(2 * width_px))
    size = 2 * reach + 1
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - column, y - row
    flat = np.zeros(size * size)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            flat += np.bincount((row + dy + reach) * size + column + dx + reach, wy * wx, size * size)
    kernel = (flat / flat.sum()).reshape(size, size).astype(np.float32)
    if width_px > 0:
        kernel = filter_image(kernel[..., None], gaussian_kernel(width_px))[..., 0]
        kernel = np.maximum(kernel, 0.0)
        kernel /= kernel.sum()
    return np.asarray(kernel, np.float32)


def filter_image(image: Array, kernel: Array) -> Array:
    """HxWxC convolved with an odd-sized KxK kernel, borders mirrored; the same shape and dtype.

    One real FFT over all channels: the cost hardly depends on the kernel's size, and nothing but numpy is needed.
    """
    height, width = image.shape[:2]
    radius = kernel.shape[0] // 2
    rows, columns = _fast_length(height + 2 * radius), _fast_length(width + 2 * radius)
    padded = image[_mirror(height, radius, rows)][:, _mirror(width, radius, columns)]
    spread = np.zeros((rows, columns), np.float32)
    spread[: kernel.shape[0], : kernel.shape[1]] = kernel
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(spread)[..., None]
    full = np.fft.irfft2(spectrum, s=(rows, columns), axes=(0, 1))
    # The kernel sits in the corner, not around the origin: the result is delayed by its radius, on top of the padding.
    return full[2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width].astype(np.float32)


def _mirror(length: int, before: int, total: int) -> NDArray[np.intp]:
    """Indices that extend 0..length-1 by mirroring (edge repeated) to ``total`` entries, ``before`` in front."""
    index = (np.arange(total) - before) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def _fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5: other lengths make the FFT several times slower."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
