"""Tile and halo of somebody else's network, from how far its pixels look; and what tiling then costs, measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clusir.calibration.planes import colours_of
from clusir.errors import UsageError
from clusir.export.subjects.onnx_probe import Array, Reach, natural_picture
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["TILING", "WHOLE_TILES_PX", "Tiles", "choose_tiles", "measured", "told_of", "tolerances_of"]

TILING = "tiling"  # the key of ModelSpec.tolerances under which the error of tiling is written
_TILE_PX = 256
_GRID_PX = 8
_LARGEST_TILE_PX = 1024
_STRIP_PX = 128  # of the photo that is cut: one seam across it says what a seam costs, however long it is
WHOLE_TILES_PX, _WHOLE_HALO_PX = (2048, 1536, 1280, 1024, 768, 512), 32  # where no distance is enough


@dataclass(frozen=True)
class Tiles:
    """``tile`` and ``halo`` in pixels; ``error``: the largest difference (of 0..1) between a photo in tiles and in one
    piece, None where it was not measured."""

    tile: int
    halo: int
    error: float | None = None


def choose_tiles(
    reach: Reach,
    size: SizeRequirements,
    tile_px: int | None,
    halo_px: int | None,
    whole_px: Callable[[], int] = lambda: WHOLE_TILES_PX[-1],
) -> Tiles:
    """A halo of the reach, a tile of eight halos at least; ``tile_px`` and ``halo_px``, where given, as they are.
    ``whole_px``: the tile where no distance is enough, which is asked for where it is needed.

    Raises UsageError for a tile that the size rule forbids, and for a halo that leaves no core of it.
    """
    grid = _grid(size)
    halo = halo_px if halo_px is not None else -(-(_WHOLE_HALO_PX if reach.whole else reach.pixels) // grid) * grid
    if size.static_px:
        if tile_px not in (None, size.static_px):
            raise UsageError(f"--tile {tile_px}: the graph takes {size}")
        tile = size.static_px
    elif tile_px is not None:
        tile = tile_px
        if size.padded(tile) != tile:
            raise UsageError(f"--tile {tile}: the graph takes {size}")
    else:
        wanted = whole_px() if reach.whole else max(_TILE_PX, min(8 * halo, _LARGEST_TILE_PX))
        tile = size.padded(wanted)
        if tile < wanted:  # the maximum
            tile = max(tile // grid * grid, size.padded(1))
    if halo_px is None:
        most = (tile - 1) // 4
        halo = min(halo, most // grid * grid or most)
    elif 2 * halo >= tile:
        raise UsageError(f"--halo {halo}: two halos leave no core of a tile of {tile} px; make --tile larger")
    return Tiles(tile, halo)


def _grid(size: SizeRequirements) -> int:
    """What a halo is a multiple of, so that tiles begin where the network's coarser maps do."""
    multiple = size.multiple_of
    return math.lcm(_GRID_PX, multiple if multiple % 2 else multiple // 2)


def measured(
    path: Path,
    run: Callable[[Array], Array],
    size: SizeRequirements,
    tiles: Tiles,
    channels: int,
    fits: Callable[[int, int], bool] = lambda *_: True,
) -> Tiles:
    """The tiles with what they cost: a strip of a photo in two tiles by the file at ``path`` against ``run`` on the
    whole.

    A file of one size, or of none as large, cannot be asked for the whole, and its tiles are returned as they were; so
    they are where the whole, by its height and width, does not fit into memory (``fits``): a quarter and a half of it,
    in front, tell.
    """
    height, width = size.padded(min(tiles.tile, _STRIP_PX)), size.padded(2 * tiles.tile - 2 * tiles.halo)
    if size.static_px or width <= tiles.tile:
        return tiles
    for part in (4, 2):
        if not fits(height, width) and fits(height, size.padded(width // part)):
            run(natural_picture(height, size.padded(width // part), channels))
    if not fits(height, width):
        return tiles
    picture = natural_picture(height, width, channels)
    colours = np.ascontiguousarray(picture[0, : colours_of(channels)].transpose(1, 2, 0))
    names = ModelSpec.from_metadata(read_metadata(path)).maps
    maps = dict(zip(names, picture[0, colours_of(channels) :], strict=True))
    with Restorer(path, backend="ort", device="cpu", threads=1, settings=maps) as restorer:
        cut = restorer.restore(colours)
    whole = run(picture)[0].transpose(1, 2, 0).clip(0, 1)
    return Tiles(tiles.tile, tiles.halo, float(np.abs(cut - whole).max()))


def tolerances_of(tiles: Tiles) -> dict[str, float]:
    """What a ModelSpec keeps of the tiles' error."""
    return {} if tiles.error is None else {TILING: float(f"{tiles.error:.3g}")}


def told_of(reach: Reach, tiles: Tiles, size: SizeRequirements) -> list[str]:
    """Sentences on sizes, tiles and what they cost."""
    sizes = f"takes {size}"
    if tiles.error is not None:
        cost = f"; a photo in two of them differs from one piece by {tiles.error:.2g} of 0..1"
    else:
        why = "the network takes no picture of two" if size.maximum else "two of them do not fit into memory"
        cost = "" if size.static_px else f"; what they cost is not measured: {why}"
    notes = [f"{sizes}; tiles of {tiles.tile} px with a halo of {tiles.halo} px{cost}"]
    if reach.whole:
        notes.append(
            f"the whole picture decides a pixel: {reach.error:.2g} of the range or more comes from beyond "
            f"{reach.pixels} px"
        )
    elif tiles.halo < reach.pixels:
        notes.append(f"a pixel looks {reach.pixels} px far, the halo is {tiles.halo} px: seams are possible")
    return notes
