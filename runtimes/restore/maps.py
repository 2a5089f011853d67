"""Further pictures that a network takes beside the one that it restores: a mask, a noise level for each pixel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from clusir.errors import ImageError, UsageError
from clusir.runtimes.restore.canvas import Pixels, RowSource
from clusir.runtimes.restore.pixels import to_unit
from clusir.runtimes.restore.sources import Restorable, opened_source
from clusir.runtimes.runners.base import Array
from clusir.spec import OWN_ALPHA, ModelSpec

__all__ = ["Mapped", "Setting", "mapped", "split_settings"]

Setting: TypeAlias = "float | Restorable"  # a number, or a picture


def split_settings(settings: Mapping[str, Setting], spec: ModelSpec) -> tuple[dict[str, Setting], dict[str, float]]:
    """(of the maps of ``spec``, numbers of other inputs), by name. Raises UsageError for a picture where no map has
    its name, and for a number outside 0..1 where one has."""
    maps, numbers = dict[str, Setting](), dict[str, float]()
    for name, value in settings.items():
        number = isinstance(value, (int, float, np.integer, np.floating))
        if name not in spec.maps:
            if name in spec.numbers and not number:
                raise UsageError(f"--set {name}={_shown(value)}: the model takes one number, no picture")
            if not number:
                has = f"it has {', '.join(spec.maps)}" if spec.maps else "it has none"
                raise UsageError(f"--set {name}={_shown(value)}: the model takes no map of that name; {has}")
            numbers[name] = float(value)  # type: ignore[arg-type]
            continue
        if number and not 0 <= float(value) <= 1:  # type: ignore[arg-type]
            raise UsageError(f"--set {name}={value}: a map is 0..1, or a picture file")
        maps[name] = value
    return maps, numbers


class Mapped:
    """A picture and its maps: ``rows`` of the one, ``planes`` of the others, a channel each. A map called ``alpha``
    that is not given is the picture's own alpha, where it has one."""

    def __init__(self, source: RowSource, spec: ModelSpec, given: Mapping[str, Setting]) -> None:
        self.source = source
        self.height, self.width, self.channels = source.height, source.width, source.channels
        self._maps: list[float | RowSource | None] = []  # None: the picture's own alpha
        self._read: tuple[int, int, Pixels | None] = (0, 0, None)
        for name, default in zip(spec.maps, spec.map_defaults, strict=True):
            if name == OWN_ALPHA and name not in given and source.channels in (2, 4):
                self._maps.append(None)
                continue
            value = given.get(name, default)
            if isinstance(value, (int, float, np.integer, np.floating)):
                self._maps.append(float(value))
                continue
            opened, _ = opened_source(value)
            if (opened.height, opened.width) != (self.height, self.width):
                raise ImageError(
                    f"map {name} ({_shown(value)}) is {opened.width}x{opened.height} px, the picture "
                    f"{self.width}x{self.height}; both must be of one size"
                )
            self._maps.append(opened)

    def rows(self, start: int, stop: int) -> Pixels:
        pixels = self.source.rows(start, stop)
        self._read = (start, stop, pixels)
        return pixels

    def planes(self, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop`` of all maps, HxWxN float32 in 0..1; of a coloured one the mean of its colours."""
        found = [
            np.full((stop - start, self.width), one, np.float32)
            if isinstance(one, float)
            else self._alpha(start, stop)
            if one is None
            else _grey(one.rows(start, stop))
            for one in self._maps
        ]
        return np.stack(found, axis=2)

    def _alpha(self, start: int, stop: int) -> Array:
        """Of rows that were just read without reading them again: a source is read once, in order."""
        first, last, pixels = self._read
        if pixels is None or (first, last) != (start, stop):
            pixels = self.source.rows(start, stop)
        alpha: Array = to_unit(pixels[:, :, -1:])[:, :, 0]
        return alpha


def mapped(source: RowSource, spec: ModelSpec, given: Mapping[str, Setting]) -> RowSource:
    """``source`` with the maps that a model of ``spec`` takes: those ``given`` by name, else their defaults. Raises
    ImageError where one cannot be read or has another size."""
    return source if isinstance(source, Mapped) or not spec.maps else Mapped(source, spec, given)


def _grey(pixels: Pixels) -> Array:
    colours = to_unit(pixels[:, :, :-1] if pixels.shape[2] in (2, 4) else pixels)
    return colours.mean(axis=2, dtype=np.float64).astype(np.float32)


def _shown(value: Any) -> str:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else type(value).__name__
