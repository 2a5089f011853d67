"""Stored values and light: the sRGB transfer function, and a tone curve, over float32 arrays in 0..1. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bend_tone", "straighten_tone", "to_light", "to_stored"]

Array = NDArray[np.float32]

_KNOTS = np.linspace(0.0, 1.0, 1025, dtype=np.float32)


def to_light(stored: Array) -> Array:
    """Linear light in 0..1 of sRGB values in 0..1 (clipped to it): the inverse transfer function of IEC 61966-2-1."""
    x = np.clip(stored, 0.0, 1.0)
    bright = ((x + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    return np.where(x <= 0.04045, x / np.float32(12.92), bright).astype(np.float32)


def to_stored(light: Array) -> Array:
    """sRGB values in 0..1 of linear light (clipped to 0..1): the transfer function of IEC 61966-2-1."""
    x = np.clip(light, 0.0, 1.0)
    bright = np.float32(1.055) * x ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(x <= 0.0031308, x * np.float32(12.92), bright).astype(np.float32)


def bend_tone(stored: Array, contrast: float) -> Array:
    """Stored values through a camera's S-shaped tone curve: ``contrast`` 0 is none, 1 is 3x^2 - 2x^3, the curve of
    Brooks et al., "Unprocessing images for learned raw denoising" (CVPR 2019)."""
    x = np.clip(stored, 0.0, 1.0)
    c = np.float32(contrast)
    bent: Array = (1 - c) * x + c * x * x * (3 - 2 * x)
    return bent


def straighten_tone(stored: Array, contrast: float) -> Array:
    """The inverse of :func:`bend_tone`, read from a table of 1025 knots."""
    return np.interp(stored, bend_tone(_KNOTS, contrast), _KNOTS).astype(np.float32)
