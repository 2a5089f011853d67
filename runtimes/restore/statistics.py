"""What a network pools over the whole picture, computed once and shared by its tiles.

Its statistics graph (``export/pooling/split.py``) looks at windows of the picture; of each window the core counts,
which is at least a halo away from its borders except where those are the picture's. ``sampled`` looks at windows that
are evenly spread; ``exact`` at as many as cover the picture, in one pass for each level of statistics that follow from
others. Pure numpy around a function that runs the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clusir.errors import ClusirError
from clusir.runtimes.restore.canvas import RowSource, crop_tile, planes_of
from clusir.runtimes.restore.pixels import check_finite
from clusir.runtimes.restore.tiling import Axis
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["MODES", "Shared", "gather", "windows_along"]

MODES = ("sampled", "exact")
_SAMPLES = 5  # windows along an axis, at most
_STEP = 8  # windows start at multiples of it, where coarser maps and JPEG's blocks begin


@dataclass(frozen=True)
class Shared:
    """The statistics [S] float32 that all tiles of a picture are given. ``at_rest``: never, the picture is restored."""

    statistics: Array
    at_rest: bool = False

    def feeds(self, batch: int) -> dict[str, Array]:
        """The input of a tile graph beside the picture, for ``batch`` tiles."""
        return {"statistics": np.repeat(self.statistics[None], batch, axis=0)}


@dataclass(frozen=True)
class Window:
    """Pixels ``start`` to ``start + side`` along an axis, of which ``first`` to ``last`` (in the window) count."""

    start: int
    side: int
    first: int
    last: int


def windows_along(length: int, spec: ModelSpec, mode: str) -> list[Window]:
    """The windows along an axis of ``length`` pixels; all have one side, at most the tile."""
    padded, tile = spec.size.padded(length), spec.tile_px
    if padded <= tile:
        return [Window(0, padded, 0, padded)]
    step = max(spec.size.multiple_of, (tile - 2 * spec.halo_px) // _grid(spec) * _grid(spec))
    count = -(-(padded - tile) // step) + 1
    if mode == "exact" or count <= _SAMPLES // 2 + 1:
        return _covering([min(i * step, padded - tile) for i in range(count)], tile, spec)
    side = spec.size.padded(max(tile // 2, min(tile, 4 * spec.halo_px)))
    starts = [round((padded - side) * i / (_SAMPLES - 1) / _grid(spec)) * _grid(spec) for i in range(_SAMPLES)]
    starts = [min(start, padded - side) for start in starts]
    halo = spec.halo_px
    return [
        Window(start, side, 0 if start == 0 else halo, side if start == padded - side else side - halo)
        for start in starts
    ]


def _grid(spec: ModelSpec) -> int:
    return max(spec.size.multiple_of, _STEP)


def _covering(starts: list[int], tile: int, spec: ModelSpec) -> list[Window]:
    """Windows whose cores cover the axis once: they meet in the middle of what two windows overlap by."""
    grid = _grid(spec)
    edges = [0]
    edges += [(before + tile + after) // 2 // grid * grid for before, after in pairwise(starts)]
    edges.append(starts[-1] + tile)
    return [Window(start, tile, first - start, last - start)
            for start, first, last in zip(starts, edges, edges[1:], strict=False)]  # fmt: skip


def gather(
    source: RowSource,
    spec: ModelSpec,
    run: Callable[[dict[str, Array]], dict[str, Array]],
    *,
    mode: str = "sampled",
    batch: int | None = None,
    alpha: bool = False,
) -> Shared:
    """The statistics of a picture, or of its ``alpha`` channel.

    ``spec`` is the statistics graph's, ``run`` runs it on ``image`` (HxWxC tiles in 0..1, stacked), ``weight``,
    ``given`` and ``known``; ``batch``: how many windows at a time (None: all). Raises ClusirError where the graph
    returns NaN or infinity.
    """
    known = np.zeros((1, spec.statistics), np.float32)
    given = known.copy()
    given[0, 0] = spec.size.padded(source.height) * spec.size.padded(source.width)
    levels = 1.0
    level = 1.0
    while level <= levels:
        total = np.zeros(spec.statistics, np.float64)
        largest = np.full(spec.statistics, -np.inf)
        weights, groups = 0.0, 0
        for images, masks in _groups(source, spec, mode, batch, alpha):
            out = run({"image": images, "weight": masks, "given": given, "known": known})
            row = out["statistics"].reshape(-1)
            if row.shape != total.shape:
                raise ClusirError(f"the statistics graph returned {row.shape[0]} numbers, not {spec.statistics}")
            check_finite(row, "the statistics graph")
            weight = float(masks.sum(dtype=np.float64))
            total += weight * row
            largest = np.maximum(largest, row)
            weights, groups = weights + weight, groups + 1
        by_maximum = np.asarray(out["largest"]).reshape(-1) > 0.5
        found = np.where(by_maximum, largest, total / weights)
        given[0, 1:] = np.where(known[0] > 0.5, given[0], found)[1:]  # the first one is the picture's size
        of = np.asarray(out["level"]).reshape(-1)
        if groups == 1:  # the graph pools its batch level by level itself
            break
        known = np.asarray(of[None] <= level, np.float32)
        levels, level = float(of.max()), level + 1
    return Shared(given[0])


def _groups(
    source: RowSource, spec: ModelSpec, mode: str, batch: int | None, alpha: bool
) -> Iterator[tuple[Array, Array]]:
    """(tiles BxHxWxC in 0..1, which of their pixels count Bx1xHxW), ``batch`` windows at a time."""
    rows = windows_along(source.height, spec, mode)
    columns = windows_along(source.width, spec, mode)
    axis = Axis(source.width, columns[0].side, (), ())
    tiles: list[Array] = []
    masks: list[Array] = []
    for row in rows:
        reached = (row.start, min(row.start + row.side, source.height))
        band, planes = source.rows(*reached), planes_of(source, *reached)
        for column in columns:
            tiles.append(crop_tile(band, axis, column.start, row.side, spec, alpha=alpha, maps=planes))
            mask = np.zeros((1, row.side, column.side), np.float32)
            mask[:, row.first : row.last, column.first : column.last] = 1
            masks.append(mask)
            if batch is not None and len(tiles) == batch:
                yield np.stack(tiles), np.stack(masks)
                tiles, masks = [], []
    if tiles:
        yield np.stack(tiles), np.stack(masks)
