"""Sensor and file: noise, low light and JPEG over HxWx3 float32 pictures in 0..1. numpy and Pillow only."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["add_gaussian_noise", "add_poisson_gaussian_noise", "compress_jpeg", "darken", "quantise"]

Array = NDArray[np.float32]


def quantise(image: Array) -> Array:
    """Clipped to 0..1 and rounded to the 256 values that an 8-bit file can hold."""
    levels: Array = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255.0)) / np.float32(255.0)
    return levels


def add_gaussian_noise(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """White Gaussian noise of standard deviation ``sigma``, in units of 1/255; unclipped."""
    noisy: Array = image + np.float32(sigma / 255.0) * rng.standard_normal(image.shape, dtype=np.float32)
    return noisy


def add_poisson_gaussian_noise(image: Array, peak: float, read_sigma: float, rng: np.random.Generator) -> Array:
    """Noise whose variance grows with the stored value, x / peak, plus ``read_sigma`` in units of 1/255; unclipped.

    The Poisson-Gaussian noise of denoising papers, which is added to stored values. Photons obey that law in light:
    seen through the tone curve their noise falls from dark to bright (:func:`clusir.degrade.camera.add_sensor_noise`).
    A Gaussian of the same mean and variance stands for the Poisson law; at ``peak`` 30 its upper tail is shorter.
    """
    variance = np.clip(image, 0.0, 1.0) / np.float32(peak) + np.float32((read_sigma / 255.0) ** 2)
    noisy: Array = image + np.sqrt(variance) * rng.standard_normal(image.shape, dtype=np.float32)
    return noisy


def darken(image: Array, gain: float, gamma: float, noise_sigma: float, rng: np.random.Generator) -> Array:
    """An under-exposed picture: ``gain * image ** gamma`` and noise of ``noise_sigma`` in units of 1/255; unclipped."""
    dark = np.float32(gain) * np.clip(image, 0.0, 1.0) ** np.float32(gamma)
    return add_gaussian_noise(dark.astype(np.float32), noise_sigma, rng)


def compress_jpeg(image: Array, quality: int, subsampling: int = 2) -> Array:
    """Through a JPEG file of ``quality`` 1..95; ``subsampling`` 2 is 4:2:0, 1 is 4:2:2, 0 is 4:4:4."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8))
    picture.save(buffer, "JPEG", quality=int(quality), subsampling=int(subsampling))
    with Image.open(buffer) as decoded:
        result: Array = np.asarray(decoded, np.float32) / np.float32(255.0)
    return result
