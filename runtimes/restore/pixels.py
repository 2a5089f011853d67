"""Between a picture's own numbers and the model's: float32 in 0..1, and back with one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.runners.base import Array

__all__ = ["check_finite", "from_model", "from_unit", "scaled", "to_model", "to_unit", "unscaled"]


def to_unit(pixels: NDArray[Any]) -> Array:
    """uint8 / 255, uint16 / 65535, floating as it is; float32. Raises ImageError for other dtypes, NaN, or floats
    outside 0..1."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"pixels of {pixels.dtype}: uint8, uint16 or floating point in 0..1 is allowed; convert them")
    if not np.isfinite(pixels).all():
        raise ImageError("the picture holds NaN or infinity; replace those pixels")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ImageError(
            f"floating-point pixels reach from {pixels.min():g} to {pixels.max():g}, allowed is 0..1; scale them"
        )
    return pixels.astype(np.float32)


def from_unit(values: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Clip to 0..1 and scale to ``dtype``'s range; integers are rounded to the nearest, half to even."""
    clipped = np.clip(values, 0.0, 1.0)
    if np.issubdtype(dtype, np.floating):
        return clipped.astype(dtype)
    # float32 holds 65535 levels with room for the rounding: 24 bits of mantissa.
    rounded: NDArray[Any] = np.rint(clipped * np.float32(np.iinfo(dtype).max)).astype(dtype)
    return rounded


def scaled(unit: Array, value_range: tuple[float, float]) -> Array:
    """0..1 as the numbers that the model takes (``ModelSpec.value_range``), float32."""
    low, high = value_range
    return unit * np.float32(high - low) + np.float32(low)


def unscaled(values: Array, value_range: tuple[float, float]) -> Array:
    """The inverse of :func:`scaled`; unclipped."""
    low, high = value_range
    return (values - np.float32(low)) / np.float32(high - low)


def to_model(pixels: NDArray[Any], value_range: tuple[float, float]) -> Array:
    """Stored samples as the model takes them. Raises ImageError as :func:`to_unit` does."""
    return scaled(to_unit(pixels), value_range)


def from_model(values: Array, value_range: tuple[float, float], dtype: np.dtype[Any]) -> NDArray[Any]:
    """What the model returned, as samples of ``dtype``. Raises ClusirError on NaN or infinity."""
    check_finite(values, "the model")
    return from_unit(unscaled(values, value_range), dtype)


def check_finite(values: Array, what: str) -> None:
    """Raises ClusirError where ``what`` returned NaN or infinity."""
    if not np.isfinite(values).all():
        raise ClusirError(f"{what} returned NaN or infinity; the model file is damaged or overflowed")
