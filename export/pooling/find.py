"""Every reduction over both spatial axes of a graph: where a pixel's answer depends on the whole picture.

A reduction is found by what it does to shapes, not by the network it stands in: its operand follows the picture's size,
its result does not. Channel attention is a mean, attention between channels a product of matrices that contracts the
pixels and norms over them, an instance norm two means, a softmax pool a maximum, a sum and a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from onnx import ModelProto, NodeProto

from clusir.export.graph.index import GraphIndex
from clusir.export.pooling.axes import Axes, Grid, read_axes
from clusir.export.pooling.explicit import REDUCTIONS, masked_operand, reduced_axes, written_out
from clusir.spec import ModelSpec

__all__ = ["Blocked", "Found", "Statistic", "find_statistics"]

_MOST_MULTIPLE = 64  # of a picture's size, in pixels
# Powers of two first: of a coarse map a few sizes are explained by others as well.
_MULTIPLES = sorted(range(2, _MOST_MULTIPLE + 1), key=lambda n: (n & (n - 1) != 0, n))
_SEARCHES = 3  # at most: one that sees what multiple is wanted, one with it, one more where that was a part of it
_LEAST_STEP = Fraction(1, 8)  # of a map that is larger than the picture; below it, it is no side but a count of pixels
# Operators that keep the order of pixels within a flattened axis, through which its map is looked for.
_TRACED = frozenset(
    (
        *("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Identity", "Cast"),
        *("Mul", "Div", "Sub", "Add", "Neg", "Exp", "Sqrt", "Abs", "Pow", "Relu", "Sigmoid", "Softmax", "Clip", "Erf"),
    )
)
_TRACE_DEPTH = 40


@dataclass(frozen=True)
class Blocked:
    """``why`` a node makes a pixel depend on the whole picture in a way that no statistic holds; ``multiple``: of what
    the picture's size has to be so that it may be one, 0 where no size is known to mend it."""

    why: str
    multiple: int = 0

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Statistic:
    """One value that is pooled over the picture.

    ``node`` makes it, from operand number 0, whose axes ``axes`` are pooled pixels: rows and columns of ``grid``, or
    one axis that holds ``copies`` times all of them, row by row. ``kind``: mean, sum, square (sum of squares), norm
    (its root), size (sum of magnitudes), max, min, or product (of matrices, a sum). ``shape``: of the value for one
    picture; ``pictures``: how many entries of axis 0 that is, 0 where that axis does not count pictures; ``others``:
    how many further numbers than pixels are pooled; ``level``: 1 where no other statistic decides it, else one more
    than those that do.
    """

    node: NodeProto
    kind: str
    axes: tuple[int, ...]
    grid: Grid
    copies: int
    shape: tuple[int, ...]
    pictures: int
    others: int
    level: int = 1

    @property
    def name(self) -> str:
        return str(self.node.output[0])

    @property
    def length(self) -> int:
        """How many numbers it is, of one picture."""
        return math.prod(self.shape)

    @property
    def per_pixel(self) -> Fraction:
        """How many numbers are pooled for each pixel of the picture."""
        return Fraction(self.others * self.copies) / self.grid.step**2


@dataclass(frozen=True)
class Found:
    """``model``: the graph with its reductions written out; ``statistics`` in the order of the graph; ``blocked``: why
    its answer depends on the whole picture in other ways too, empty where nothing says so; ``multiple``: sizes at which
    all of it holds."""

    model: ModelProto
    axes: Axes
    statistics: tuple[Statistic, ...]
    blocked: tuple[Blocked, ...]
    multiple: int


def find_statistics(model: ModelProto, spec: ModelSpec, *, batches: bool) -> Found:
    """What a graph pools over the picture, for the smallest multiple of its size rule at which each map is a part of
    the picture, where there is one. Raises ExportError where it does not run at several sizes."""

    def search(multiple: int) -> Found:
        plain = written_out(model, read_axes(model, spec, batches=batches, multiple=multiple))
        return _search(plain, read_axes(plain, spec, batches=batches, multiple=multiple), multiple)

    found = first = search(spec.size.multiple_of)
    for _ in range(_SEARCHES - 1):
        wanted = math.lcm(found.multiple, *(reason.multiple for reason in found.blocked if reason.multiple))
        if wanted == found.multiple:
            return found
        if wanted > _MOST_MULTIPLE:
            break
        found = search(wanted)
    return first if any(reason.multiple for reason in found.blocked) else found


def _search(model: ModelProto, axes: Axes, multiple: int) -> Found:
    index = GraphIndex(model.graph)
    statistics: list[Statistic] = []
    blocked: list[Blocked] = []
    level: dict[str, int] = {}
    for node in model.graph.node:
        before = max((level.get(name, 0) for name in node.input if name), default=0)
        made = _statistic(index, axes, node)
        if isinstance(made, Blocked):
            blocked.append(made)
        elif made is not None:
            before += 1
            statistics.append(replace(made, level=before))
        for name in node.output:
            level[name] = before
    return Found(model, axes, tuple(statistics), tuple(dict.fromkeys(blocked)), multiple)


def _statistic(index: GraphIndex, axes: Axes, node: NodeProto) -> Statistic | Blocked | None:
    """The statistic that a node makes; why it cannot be one; None where it pools no picture."""
    if not node.input or node.input[0] not in axes.shapes or node.output[0] not in axes.shapes:
        return None
    varying = axes.varying(node.input[0])
    if not varying:
        return None
    pooled = _pooled_axes(index, axes, node)
    if pooled is None or not set(pooled) & set(varying):
        return None
    left = axes.varying(node.output[0])
    kind, called = _kind(node), f"{node.op_type} {node.name or node.output[0]}"
    if left or not set(varying) <= set(pooled):
        what = "compares every pixel with every other" if kind in ("product", "softmax") else "pools rows or columns"
        return Blocked(f"{called} {what}")
    if kind == "softmax":
        return Blocked(f"{called} is not written out here")
    layout = _layout(index, axes, node.input[0], varying)
    if layout is None:
        multiple = _padded_to(index, axes, node.input[0])
        return Blocked(f"{called} pools a map that is no part of the picture's size", multiple)
    grid, copies = layout
    shape = axes.shape(node.output[0])
    rest = [length for axis, length in enumerate(axes.shape(node.input[0])) if axis in pooled and axis not in varying]
    pictures = axes.pictures_axis(node.output[0])
    if not axes.pictures_axis(node.input[0]):
        return Blocked(f"{called} pools a value that does not count pictures first")
    return Statistic(node, kind, varying, grid, copies, shape, pictures, math.prod(rest))


def _kind(node: NodeProto) -> str:
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        return "mean" if node.op_type == "GlobalAveragePool" else "max"
    if node.op_type in ("MatMul", "Einsum"):
        return "product"
    return REDUCTIONS.get(node.op_type, "softmax")


def _pooled_axes(index: GraphIndex, axes: Axes, node: NodeProto) -> tuple[int, ...] | None:
    """The axes of the first operand that do not come out again; None for an operator that pools nothing."""
    rank = len(axes.shape(node.input[0]))
    if node.op_type in REDUCTIONS:
        return reduced_axes(index, node, rank)
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization"):
        return tuple(range(2, rank))
    if node.op_type in ("Softmax", "LogSoftmax"):
        return (index.attribute(node, "axis", -1) % rank,)
    if node.op_type == "MatMul":
        return (rank - 1,)
    if node.op_type == "Einsum" and (letters := masked_operand(node)) is not None:
        return tuple(axis for axis, letter in enumerate(letters[0]) if letter not in letters[1])
    return None


def _padded_to(index: GraphIndex, axes: Axes, name: str) -> int:
    """The multiple to which the sides of the map behind a value are rounded, up or down; 0 where they are not."""
    at: str | None = name
    for _ in range(_TRACE_DEPTH):
        if at is None:
            return 0
        varying = axes.varying(at)
        sides = [(0, 1)] if len(varying) == 2 else [(0,), (1,)]  # two widths may be rounded to one
        for which in sides if len(varying) <= 2 else []:
            pairs = {(size[n], shape[axis]) for n, axis in zip(which, varying, strict=True)
                     for size, shape in zip(axes.sizes, axes.shapes[at], strict=True)}  # fmt: skip
            if multiple := next((m for m in _MULTIPLES if _rounds(pairs, m)), 0):
                return multiple
        at = _source(index, axes, at)
    return 0


def _rounds(pairs: set[tuple[int, int]], multiple: int) -> bool:
    """Whether the second of each pair is a part of the first after that was rounded to a multiple."""
    for up in (True, False):
        steps = {Fraction((-(-side // multiple) if up else side // multiple) * multiple, made) for side, made in pairs}
        step = steps.pop()
        whole = step.denominator == 1 or (step.numerator == 1 and step >= _LEAST_STEP)
        if not steps and whole and multiple % step == 0:
            return True
    return False


def _layout(index: GraphIndex, axes: Axes, name: str, varying: tuple[int, ...]) -> tuple[Grid, int] | None:
    """(the grid of the pooled pixels, how often each is there); None where the pixels cannot be told."""
    if len(varying) == 2:
        sides = axes.sides(name)
        return (sides[2], 1) if sides is not None else None
    if len(varying) != 1:
        return None
    lengths = [shape[varying[0]] for shape in axes.shapes[name]]
    at = name
    for _ in range(_TRACE_DEPTH):
        sides = axes.sides(at) if len(axes.shapes[at][0]) >= 3 else None
        if sides is not None:
            grid = sides[2]
            copies = {Fraction(n) / grid.count(*size) for n, size in zip(lengths, axes.sizes, strict=True)}
            factor = copies.pop()
            return (grid, int(factor)) if not copies and factor.denominator == 1 and factor >= 1 else None
        before = _source(index, axes, at)
        if before is None:
            return None
        at = before
    return None


def _source(index: GraphIndex, axes: Axes, name: str) -> str | None:
    """The value from which another follows pixel by pixel, in their order; None where it is not known to."""
    node = index.producer.get(name)
    if node is None or node.op_type not in _TRACED:
        return None
    return next((i for i in node.input if i in axes.shapes and axes.varying(i)), None)
