"""Where the tiles of a picture lie, how they are padded, how they blend. Pure numpy; C++ and JavaScript do the same.

Both axes are planned alone; a tile of the picture is a pair, and its weights are the product. Along an axis of length
L with a halo of h pixels, as few tiles are taken as T pixels allow, T being the model's tile; where the model takes
other sizes too, tiles are then as short as their number allows, since every pixel costs. They start at
``min(i * (T - 2h), L - T)``: neighbours overlap by 2h, the last two by more. Between neighbours i and i+1 lies a ramp
of 1.5h pixels around the middle c of their overlap::

    t = clip((x + 0.5 - c) / 1.5h + 0.5, 0, 1)    R_i(x) = t^2 (3 - 2t), rounded to 1/2048
    weight_i(x) = R_{i-1}(x) - R_i(x)             with R_{-1} = 1 and R_{n-1} = 0

The sum telescopes, and every weight is a multiple of 1/2048, so products of two are exact in float32: the weights of
all tiles sum to exactly 1 at every pixel. The outermost h/4 pixels of a tile, which have seen most of its border's
padding, have no say; the cubic starts and ends with zero slope, so the blend itself shows no line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["Axis", "Plan", "pad_tile", "plan_axis", "plan_picture"]

_WEIGHT_STEPS = 2048


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis: ``length`` of the picture, ``tile`` length (larger than ``length`` where the picture is
    padded), the first pixel of each tile, and each tile's float32 weights [tile]."""

    length: int
    tile: int
    starts: tuple[int, ...]
    weights: tuple[Array, ...]

    def enlarged(self, scale: int, halo: int) -> Axis:
        """The same tiles in the pixels of a picture ``scale`` times as long; ``halo`` in pixels of the small one."""
        if scale == 1:
            return self
        starts, tile = tuple(scale * s for s in self.starts), scale * self.tile
        if len(starts) == 1:
            return Axis(scale * self.length, tile, starts, (np.ones(tile, np.float32),))
        weights = tuple(_weights(i, starts, tile, scale * halo) for i in range(len(starts)))
        return Axis(scale * self.length, tile, starts, weights)

    def sample(self) -> tuple[int, ...]:
        """The first pixels of at most three windows as long as a tile, evenly spread: where routing looks.

        No more than cover the axis, and not the tiles' own places, of which the last two may be a pixel apart: what
        they overlap by would count twice. Multiples of 8, so that all lie on JPEG's grid alike.
        """
        count = max(1, min(3, -(-(self.length - 7) // self.tile)))
        return tuple(i * (self.length - self.tile) // max(1, count - 1) // 8 * 8 for i in range(count))


@dataclass(frozen=True)
class Plan:
    """The tiles of a picture: every pair of a row start ``y.starts`` and a column start ``x.starts``."""

    y: Axis
    x: Axis

    @property
    def count(self) -> int:
        return len(self.y.starts) * len(self.x.starts)


def plan_picture(height: int, width: int, spec: ModelSpec) -> Plan:
    """The plan for a picture of ``height`` x ``width`` pixels (at least 1x1)."""
    return Plan(plan_axis(height, spec), plan_axis(width, spec))


def plan_axis(length: int, spec: ModelSpec) -> Axis:
    """The tiles that cover ``length`` pixels under the model's tile, halo and size rule."""
    if length < 1:
        raise ValueError(f"a picture of {length} pixels has no tiles")
    tile, halo = spec.tile_px, spec.halo_px
    if length <= tile:
        padded = spec.size.padded(length)
        return Axis(length, padded, (0,), (np.ones(padded, np.float32),))
    count = -(-(length - tile) // (tile - 2 * halo)) + 1
    # No longer than the model's tile, which obeys the size rule itself; a static graph knows one size.
    tile = spec.size.padded(-(-(length - 2 * halo) // count) + 2 * halo)
    starts = tuple(min(i * (tile - 2 * halo), length - tile) for i in range(count))
    return Axis(length, tile, starts, tuple(_weights(i, starts, tile, halo) for i in range(count)))


def _weights(index: int, starts: tuple[int, ...], tile: int, halo: int) -> Array:
    x = starts[index] + np.arange(tile, dtype=np.float64) + 0.5
    left = _ramp(x, starts[index - 1], starts[index], tile, halo) if index else np.float64(1)
    right = _ramp(x, starts[index], starts[index + 1], tile, halo) if index + 1 < len(starts) else np.float64(0)
    return np.asarray(np.broadcast_to(left - right, (tile,)), dtype=np.float32)


def _ramp(x: NDArray[np.float64], start: int, following: int, tile: int, halo: int) -> NDArray[np.float64]:
    """R at pixel centres ``x`` for the neighbours that start at ``start`` and ``following``."""
    middle = (start + following + tile) / 2
    if halo == 0:
        return np.asarray(x > middle, dtype=np.float64)
    t = np.clip((x - middle) / (1.5 * halo) + 0.5, 0.0, 1.0)
    smooth = t * t * (3 - 2 * t)
    return np.floor(smooth * _WEIGHT_STEPS + 0.5) / _WEIGHT_STEPS


def pad_tile(image: Array, height: int, width: int) -> Array:
    """HxWxC grown to ``height`` x ``width`` at the bottom and right, by reflection without repeating the edge (again
    and again where the picture is shorter than the padding; a single row or column is repeated)."""
    below, right = height - image.shape[0], width - image.shape[1]
    if below == 0 and right == 0:
        return image
    return image[_reflect(image.shape[0], height)][:, _reflect(image.shape[1], width)]


def _reflect(length: int, wanted: int) -> NDArray[np.intp]:
    if length == 1:
        return np.zeros(wanted, np.intp)
    period = 2 * length - 2
    within = np.arange(wanted) % period
    return np.where(within < length, within, period - within)
