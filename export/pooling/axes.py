"""Which axes of a graph's values follow the picture's height and width, found by running it at several sizes.

Shape inference loses sight of sizes that a graph computes with Shape, Div and Concat; a run does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from clusir.errors import ExportError
from clusir.export.graph.session import Probe
from clusir.spec import ModelSpec

__all__ = ["Axes", "Grid", "read_axes"]

_SIDE_PX = 64


@dataclass(frozen=True)
class Grid:
    """A map whose sides are those of the picture divided by ``step`` (below 1 where it is larger)."""

    step: Fraction

    def count(self, height: int, width: int) -> Fraction:
        """Its pixels, of a picture of that size."""
        return height * width / self.step**2


@dataclass(frozen=True)
class Axes:
    """``shapes``: of every value at each of ``sizes`` (height, width) with one picture; ``pairs``: at the first size
    with two (empty where the graph takes one)."""

    sizes: tuple[tuple[int, int], ...]
    shapes: dict[str, tuple[tuple[int, ...], ...]]
    pairs: dict[str, tuple[int, ...]]
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def varying(self, name: str) -> tuple[int, ...]:
        """The axes whose length follows the size."""
        shapes = self.shapes.get(name)
        if shapes is None or len({len(shape) for shape in shapes}) != 1:
            return ()
        return tuple(axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1)

    def shape(self, name: str) -> tuple[int, ...]:
        """At the first size, with one picture."""
        return self.shapes[name][0]

    def pictures_axis(self, name: str) -> int:
        """How many entries of axis 0 belong to one picture; 0 where axis 0 does not count pictures."""
        one = self.shapes[name][0]
        if not self.pairs:
            return one[0] if one else 0
        two = self.pairs.get(name, one)
        same = len(one) == len(two) and one[1:] == two[1:]
        return one[0] if one and same and two[0] == 2 * one[0] else 0

    def sides(self, name: str) -> tuple[int, int, Grid] | None:
        """(axis of the rows, axis of the columns, grid) of a value that is a map; None for any other."""
        axes = self.varying(name)
        if len(axes) != 2:
            return None
        for rows, columns in (axes, axes[::-1]):
            steps = {
                Fraction(side, shape[axis])
                for size, shape in zip(self.sizes, self.shapes[name], strict=True)
                for side, axis in zip(size, (rows, columns), strict=True)
            }
            if len(steps) == 1 and _whole(step := steps.pop()):
                return rows, columns, Grid(step)
        return None


def _whole(step: Fraction) -> bool:
    return step.numerator == 1 or step.denominator == 1


def read_axes(model: ModelProto, spec: ModelSpec, *, batches: bool, multiple: int) -> Axes:
    """Open the graph (input ``image``) at sizes that are a ``multiple`` and read the shape of every value. ``batches``:
    whether it takes two pictures. Raises ExportError where it does not run.

    Of a graph of one size the runtime knows what follows from the size alone, and computes only what does not.
    """
    names = [name for node in model.graph.node for name in node.output if name]
    casts = [n.output[0] for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.FLOAT]
    asked = ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:], asked.graph.value_info[:]
    for index, name in enumerate(names):
        shape = f"shape of {index}"
        asked.graph.node.append(helper.make_node("Shape", [name], [shape]))
        asked.graph.output.append(helper.make_tensor_value_info(shape, TensorProto.INT64, [None]))
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in casts)
    sides = asked.graph.input[0].type.tensor_type.shape.dim

    def run(count: int, height: int, width: int) -> dict[str, NDArray[Any]]:
        picture = np.random.default_rng(0).random((count, spec.planes, height, width), dtype=np.float32)
        for side, length in zip(sides, picture.shape, strict=True):
            side.dim_value = length
        try:
            found = Probe(asked, threads=1).run({"image": picture})
            return {**found, "shape of image": np.array(picture.shape)}
        except Exception as error:  # the runtime raises its own types, which are not public
            raise ExportError(f"the graph does not run at {height}x{width} px: {str(error)[:160]}") from error

    base = -(-max(_SIDE_PX, spec.size.minimum) // multiple) * multiple
    far = base + 5 * multiple
    sizes = ((base, base + 2 * multiple), (base + multiple, base + 2 * multiple), (base, far), (far, far))
    runs = [run(1, *size) for size in sizes]
    pair = run(2, *sizes[0]) if batches else {}
    keys = {name: f"shape of {index}" for index, name in enumerate(names)} | {"image": "shape of image"}
    shapes = {name: tuple(tuple(map(int, found[key])) for found in runs) for name, key in keys.items()}
    pairs = {name: tuple(map(int, pair[key])) for name, key in keys.items()} if pair else {}
    counts = {name: line for name in casts if (line := _line(sizes, [found[name] for found in runs])) is not None}
    return Axes(sizes, shapes, pairs, counts)


def _line(sizes: tuple[tuple[int, int], ...], values: list[NDArray[Any]]) -> tuple[float, float] | None:
    """(a, b) where a number is a * height * width + b at all sizes, and a is not 0."""
    if any(value.size != 1 for value in values):
        return None
    areas = np.array([height * width for height, width in sizes], np.float64)
    numbers = np.array([float(value.reshape(-1)[0]) for value in values])
    a, b = np.polyfit(areas, numbers, 1)
    fits = np.abs(a * areas + b - numbers).max() <= 1e-6 * np.abs(numbers).max()
    return (float(a), float(b)) if fits and abs(a) * areas.max() > 1e-6 * np.abs(numbers).max() else None
