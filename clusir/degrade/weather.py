"""Weather: rain streaks and haze over HxWx3 float32 pictures in 0..1. numpy only.

Streaks, and depth in pictures of up to 481 px, have a scale in pixels, not in fractions of the picture: a crop of a
training photo then sees what the same area of a whole photo would see. In larger pictures depth grows with them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.light import to_light, to_stored
from clusir.degrade.optics import filter_image, line_kernel

__all__ = ["add_haze", "add_haze_in_light", "add_rain", "depth_map"]

Array = NDArray[np.float32]

DEPTH_SCALE_PX = 320
"""Over this many pixels a synthetic scene goes from near to far, in pictures of up to ``_SMALL_PX``."""
_SMALL_PX = 481
_GRID = 5  # hills of relief over that distance
_RAIN_BRIGHTNESS = 0.92


def add_rain(
    image: Array, density: float, length_px: float, angle_deg: float, strength: float, rng: np.random.Generator
) -> Array:
    """Two layers of streaks, near and far, blended over the picture; unclipped.

    ``density`` is the fraction of pixels at which a far streak begins, ``length_px`` the length of the near streaks,
    ``angle_deg`` their tilt from vertical, ``strength`` in 0..1 the opacity of the brightest streak. A streak is an
    almost white, partly transparent veil (an alpha blend towards 0.92 of stored values), so bright regions hide it,
    and what is brighter than that gets a little darker.
    """
    height, width = image.shape[:2]
    veil = np.zeros((height, width, 1), np.float32)
    for share, length, thickness in ((1.0, 0.55 * length_px, 0.0), (0.18, length_px, 0.7)):
        drops = rng.random((height, width, 1), dtype=np.float32)
        limit = np.float32(max(density * share, 1e-7))
        # Where a drop is, its random number is uniform below the limit: dividing gives it a brightness for nothing.
        seeds = np.where(drops < limit, 0.35 + 0.65 * drops / limit, 0.0).astype(np.float32)
        kernel = line_kernel(length, 90.0 + angle_deg, width_px=thickness)
        veil = np.maximum(veil, filter_image(seeds, kernel / kernel.max()))
    alpha = np.float32(strength) * np.clip(veil, 0.0, 1.0)
    rainy: Array = image * (1 - alpha) + np.float32(_RAIN_BRIGHTNESS) * alpha
    return rainy


def depth_scale(height: int, width: int) -> float:
    """Pixels from near to far in a picture of that size: 320 up to 481 px, then in proportion to the longer side."""
    return DEPTH_SCALE_PX * max(1.0, max(height, width) / _SMALL_PX)


def depth_map(height: int, width: int, rng: np.random.Generator) -> Array:
    """A synthetic HxW depth in about 0.1..1.6 (1 = the middle of the scene): far at the top, with smooth relief."""
    scale = depth_scale(height, width)
    tilt = rng.uniform(-0.5, 0.5)
    top = rng.uniform(0.0, max(scale - height, 1)) / scale
    y = top + np.arange(height, dtype=np.float32)[:, None] / np.float32(scale)
    x = np.arange(width, dtype=np.float32)[None, :] / np.float32(scale) - 0.5
    slope = rng.uniform(0.3, 1.0)
    relief = _smooth_field(height, width, scale / _GRID, rng) * np.float32(rng.uniform(0.1, 0.4))
    return np.clip(1.0 + slope * (0.5 - y) + tilt * slope * x + relief, 0.1, 1.6).astype(np.float32)


def add_haze(image: Array, beta: float, airlight: tuple[float, float, float], rng: np.random.Generator) -> Array:
    """Koschmieder's law, I = J t + A (1 - t) with t = exp(-beta depth), over a synthetic depth map, in stored values:
    what the published dehazing sets do (RESIDE, Li et al., IEEE TIP 2019)."""
    depth = depth_map(image.shape[0], image.shape[1], rng)
    transmission = np.exp(-np.float32(beta) * depth)[..., None]
    hazy: Array = image * transmission + np.asarray(airlight, np.float32) * (1 - transmission)
    return hazy


def add_haze_in_light(
    image: Array, beta: float, airlight: tuple[float, float, float], rng: np.random.Generator
) -> Array:
    """The same law in linear light, where light is added; ``airlight`` in stored values."""
    return to_stored(add_haze(to_light(image), beta, tuple(to_light(np.asarray(airlight, np.float32))), rng))


def _smooth_field(height: int, width: int, grid_px: float, rng: np.random.Generator) -> Array:
    """Smooth noise in -1..1 with hills of ``grid_px``: a random grid, interpolated with a smoothstep."""
    size = (int(height // grid_px) + 2, int(width // grid_px) + 2)
    grid = rng.uniform(-1.0, 1.0, size).astype(np.float32)
    rows, wy = _lattice(height, grid_px)
    columns, wx = _lattice(width, grid_px)
    upper = grid[rows][:, columns] * (1 - wx) + grid[rows][:, columns + 1] * wx
    lower = grid[rows + 1][:, columns] * (1 - wx) + grid[rows + 1][:, columns + 1] * wx
    return (upper * (1 - wy[:, None]) + lower * wy[:, None]).astype(np.float32)


def _lattice(length: int, grid_px: float) -> tuple[NDArray[np.intp], Array]:
    """For each pixel the grid cell to its left, and the smoothstep weight of the one to its right."""
    position = np.arange(length) / grid_px
    cell = position.astype(np.intp)
    fraction = (position - cell).astype(np.float32)
    return cell, fraction * fraction * (3 - 2 * fraction)
