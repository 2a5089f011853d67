"""The rows of one picture that are being restored: a window of input, an accumulator of the same height."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.runtimes.restore.pixels import from_unit, scaled, to_unit, unscaled
from clusir.runtimes.restore.tiling import Axis, Plan, pad_tile
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["Canvas", "Pixels", "RowSource", "crop_tile", "planes_of"]

Pixels = NDArray[Any]


class RowSource(Protocol):
    """A picture that hands out bands of rows. ``channels``: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""

    height: int
    width: int
    channels: int

    def rows(self, start: int, stop: int) -> Pixels:
        """Rows ``start`` (included) to ``stop`` (excluded) as HxWxC, uint8, uint16 or float32 in 0..1."""
        ...


class Canvas:
    """Tiles in, final rows out.

    ``infer(tiles, layer)`` restores at most ``batch`` HxWxC tiles at a time, all of one layer (0: the colours, 1: an
    alpha channel that is restored as a grey picture), into numbers of the value range of ``spec``. ``alpha`` is
    ``keep``, ``process`` or ``drop``; ``dtype`` is what rows are rounded to (None: the source's).

    Of a model of ``scale`` s, every row of the source becomes s rows, s times as wide; an alpha channel that is kept is
    enlarged bicubically, tile by tile like the colours.
    """

    def __init__(
        self,
        source: RowSource,
        plan: Plan,
        infer: Callable[[list[Array], int], Array],
        spec: ModelSpec,
        *,
        alpha: str = "keep",
        batch: int = 1,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.source, self.plan, self.dtype, self.spec = source, plan, dtype, spec
        self.infer, self.alpha, self.batch = infer, alpha, batch
        self.blend = np.float32(1.0)
        self.has_alpha = source.channels in (2, 4)
        self.enlarges_alpha = self.has_alpha and alpha == "keep" and spec.scale != 1
        self.layers = 2 if self.has_alpha and (alpha == "process" or self.enlarges_alpha) else 1
        self.large = Plan(plan.y.enlarged(spec.scale, spec.halo_px), plan.x.enlarged(spec.scale, spec.halo_px))

    def bands(self, blend: float = 1.0) -> Iterator[Pixels]:
        """Rows, top to bottom. ``blend`` 0..1 is the share of the restored picture, held to 0..1, in them; the
        rest is the source. It needs a model of ``scale`` 1."""
        self.blend = np.float32(blend)
        plan, height, scale = self.plan, self.source.height, self.spec.scale
        rows = min(plan.y.tile, height)
        window, maps = self.source.rows(0, rows), planes_of(self.source, 0, rows)
        # One accumulator for the picture, and one more for an alpha channel that is restored as a grey picture.
        # A plane for each channel, as runtimes answer: tiles are added to it in a seventh of the time.
        planes = np.zeros((self.layers, self.spec.channels, scale * rows, scale * self.source.width), np.float32)
        total = planes.transpose(0, 2, 3, 1)
        for index, start in enumerate(plan.y.starts):
            self._add_tiles(total, window, maps, index)
            last = index + 1 == len(plan.y.starts)
            done = rows if last else plan.y.starts[index + 1] - start
            yield self._finish(total[:, : scale * done], window[:done])
            if not last:
                total[:, : scale * (rows - done)] = total[:, scale * done :].copy("K")
                total[:, scale * (rows - done) :] = 0
                following = (start + rows, start + rows + done)
                window = np.concatenate([window[done:], self.source.rows(*following)])
                more = planes_of(self.source, *following)
                maps = None if maps is None or more is None else np.concatenate([maps[done:], more])

    def _add_tiles(self, total: Array, window: Pixels, maps: Array | None, index: int) -> None:
        x, y = self.plan.x, self.plan.y
        columns = range(len(x.starts))
        groups = [
            (layer, columns[i : i + self.batch])
            for layer in range(self.layers)
            for i in range(0, len(columns), self.batch)
        ]
        for layer, group in groups:
            tiles = [crop_tile(window, x, x.starts[c], y.tile, self.spec, alpha=layer == 1, maps=maps) for c in group]
            restored = (
                [self._enlarge(tile, len(window)) for tile in tiles]
                if layer and self.enlarges_alpha
                else self.infer(tiles, layer)
            )
            for column, tile in zip(group, restored, strict=True):
                begin = self.large.x.starts[column]
                part = total[layer, :, begin : begin + self.large.x.tile]
                rows, columns = part.shape[:2]
                weight = self.large.y.weights[index][:rows, None] * self.large.x.weights[column][None, :columns]
                part += tile[:rows, :columns] * weight[:, :, None]

    def _enlarge(self, tile: Array, rows: int) -> Array:
        """A grey tile HxWxC, without its padding below ``rows`` and beside the picture, enlarged bicubically; in the
        model's value range."""
        inside = tile[:rows, : self.source.width, 0]
        height, width = (self.spec.scale * n for n in inside.shape)
        large = Image.fromarray(inside).resize((width, height), Image.Resampling.BICUBIC)
        unit = np.asarray(large, np.float32)[:, :, None]
        return scaled(np.repeat(unit, self.spec.channels, axis=2), self.spec.value_range)

    def _blended(self, restored: Array, source: Pixels) -> Array:
        """``blend`` of what was restored, which is held to 0..1 first, and the rest of the source; both HxWxC."""
        if self.blend == 1:
            return restored
        before = to_unit(source)
        mixed: Array = before + self.blend * (np.clip(restored, 0.0, 1.0) - before)
        return mixed

    def _finish(self, total: Array, window: Pixels) -> Pixels:
        """The one rounding: from the accumulators to the picture's own dtype and channels."""
        colours = window.shape[2] - self.has_alpha
        grey = colours == 1
        dtype = self.dtype or window.dtype
        unit = unscaled(total, self.spec.value_range)
        blended = self._blended(_grey(unit[0]) if grey else unit[0], window[:, :, :colours])
        picture = np.ascontiguousarray(from_unit(blended, dtype))  # pixel by pixel, as files are written
        if not self.has_alpha or self.alpha == "drop":
            return picture
        alpha = window[:, :, -1:]
        if self.layers == 2:
            alpha = from_unit(self._blended(_grey(unit[1]), alpha), dtype)
        elif alpha.dtype != dtype or np.issubdtype(dtype, np.floating):
            alpha = from_unit(to_unit(alpha), dtype)  # floats are held to 0..1, as colours are
        return np.concatenate([picture, alpha], axis=2)


def _grey(values: Array) -> Array:
    """The mean of the channels; in double precision, so that of three equal numbers it is that number."""
    return values.mean(axis=2, keepdims=True, dtype=np.float64).astype(np.float32)


def planes_of(source: RowSource, start: int, stop: int) -> Array | None:
    """Rows of the maps that come with a picture (:mod:`clusir.runtimes.restore.maps`), HxWxN float32 in 0..1; None
    where none do."""
    planes: Callable[[int, int], Array] | None = getattr(source, "planes", None)
    return None if planes is None else planes(start, stop)


def crop_tile(
    band: Pixels,
    x: Axis,
    start: int,
    height: int,
    spec: ModelSpec,
    *,
    alpha: bool = False,
    maps: Array | None = None,
) -> Array:
    """One tile of a band of rows as HxWxC float32 in 0..1 with the model's channels, padded to the tile's size; of the
    ``alpha`` channel instead of the colours where that is asked for. ``maps``: the same rows of further planes, which
    follow the channels."""
    columns = slice(start, start + x.tile)
    part = band[:, columns]
    channels = part.shape[2]
    if alpha:
        part = part[:, :, -1:]
    elif channels in (2, 4):
        part = part[:, :, :-1]
    unit = pad_tile(to_unit(part), height, x.tile)
    tile = np.repeat(unit, spec.channels, axis=2) if unit.shape[2] == 1 else unit
    return tile if maps is None else np.concatenate([tile, pad_tile(maps[:, columns], height, x.tile)], axis=2)
