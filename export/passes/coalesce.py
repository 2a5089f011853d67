"""Coalesce: fewer axes where neighbours are never looked at apart, for runtimes that have four or five at most.

Between two neighbouring axes of a tensor lies a seam. An operator ties a seam of what it reads to one of what it
answers (elementwise operators, products of matrices over their batches, sums over both axes or neither), or needs it
(one of the two axes is summed, cut, joined or repeated alone). Seams that are tied and that nobody needs are closed
together, as long as one of their tensors has more than four axes. The elements stay in their order, so that the numbers
are the same, bit for bit. Every shape must be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.passes.rank_four import EACH, RELABEL, known_shapes

__all__ = ["Coalesce", "coalesced_axes"]

_MOST = 4
_MORE = {"And", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Not", "Or",
         "Round", "Sum"}  # fmt: skip
_REDUCE = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
           "ReduceSumSquare", "ReduceLogSumExp"}  # fmt: skip
Seam = tuple[str, int]  # a value, and the axis before the seam


def coalesced_axes(shape: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """A transposition of an array of ``shape`` to ``order`` with as few axes as it can be told with, as another shape
    and order of the same elements: axes of one element are left out, and axes that stay side by side are one."""
    order = [axis for axis in order if shape[axis] != 1]
    kept = sorted(order)
    runs: list[list[int]] = []  # in the new order
    for axis in order:
        if runs and kept.index(axis) == kept.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    before = sorted(runs)
    return [math.prod(shape[axis] for axis in run) for run in before], [before.index(run) for run in runs]


class _Seams:
    """Which seams are closed together, and which must stay."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.parent: dict[Seam, Seam] = {}
        self.needed: set[Seam] = set()
        self.closed: dict[str, set[int]] = {}

    def root(self, seam: Seam) -> Seam:
        while self.parent.get(seam, seam) != seam:
            seam = self.parent[seam]
        return seam

    def tie(self, one: Seam, other: Seam) -> None:
        self.parent[self.root(one)] = self.root(other)

    def need(self, value: str, seams: Iterable[int]) -> None:
        rank = len(self.shapes.get(value, ()))
        self.needed |= {(value, seam) for seam in seams if 0 <= seam < rank - 1}

    def need_all(self, value: str) -> None:
        self.need(value, range(len(self.shapes.get(value, ()))))

    def along(self, values: Sequence[str], axes: Iterable[int]) -> None:
        """Values of one rank, whose seams are tied but for those at ``axes``."""
        first, rank = values[0], len(self.shapes[values[0]])
        kept = {axis % rank for axis in axes}
        for seam in range(rank - 1):
            for value in values:
                if seam in kept or seam + 1 in kept:
                    self.need(value, [seam])
                else:
                    self.tie((first, seam), (value, seam))

    def broadcast(self, operand: str, out: str, last: int = 0) -> None:
        """An operand meets a result from the right, but for the ``last`` axes of both."""
        small, large = self.shapes[operand], self.shapes[out]
        ahead = len(large) - len(small)
        padded = (1,) * ahead + small
        for seam in range(len(large) - 1 - last):
            here, there = padded[seam : seam + 2], large[seam : seam + 2]
            if here not in (there, (1, 1)):
                self.need(out, [seam])
                self.need(operand, [seam - ahead])
            elif seam >= ahead:
                self.tie((operand, seam - ahead), (out, seam))

    def close(self) -> None:
        """Close seams until no value has more than four axes, or none is left that may be closed."""
        barred = {self.root(seam) for seam in self.needed}
        groups: dict[Seam, list[Seam]] = {}
        for value, shape in self.shapes.items():
            for seam in range(len(shape) - 1):
                root = self.root((value, seam))
                if root not in barred:
                    groups.setdefault(root, []).append((value, seam))
        for group in sorted(groups.values(), key=lambda group: (any(seam == 0 for _, seam in group), -len(group))):
            if any(len(self.shapes[value]) - len(self.closed.get(value, ())) > _MOST for value, _ in group):
                for value, seam in group:
                    self.closed.setdefault(value, set()).add(seam)

    def axis(self, value: str, axis: int) -> int:
        """Which axis of the value, its seams closed, one of it is."""
        axis %= len(self.shapes[value])
        return axis - sum(seam < axis for seam in self.closed.get(value, ()))

    def shape(self, value: str) -> list[int]:
        made: list[int] = []
        for axis, side in enumerate(self.shapes[value]):
            if axis and axis - 1 in self.closed.get(value, ()):
                made[-1] *= side
            else:
                made.append(side)
        return made


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class _Node:
    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], seams: _Seams) -> None:
        self.node, self.seams, self.kind = node, seams, node.op_type
        self.given, self.out = list(node.input), list(node.output)
        self.values = _attributes(node)
        self.constants = constants

    def numbers(self, index: int) -> list[int] | None:
        if index >= len(self.given) or self.given[index] not in self.constants:
            return None
        return [int(number) for number in numpy_helper.to_array(self.constants[self.given[index]]).reshape(-1)]

    def axes(self) -> list[int] | None:
        """The axes of a reduction or a cut; None where they are computed."""
        rank = len(self.seams.shapes[self.given[0]])
        place = 3 if self.kind == "Slice" else 1
        if len(self.given) > place and self.given[place]:
            found = self.numbers(place)
        elif self.kind == "Slice":
            found = list(range(len(self.numbers(1) or [])))
        else:
            found = list(self.values.get("axes", range(rank)))  # type: ignore[call-overload]
        return None if found is None else [axis % rank for axis in found]


def _tie(node: _Node) -> bool:
    """Tie the seams of what a node reads and answers; False where it is not known how."""
    seams, shapes = node.seams, node.seams.shapes
    kind, given, out = node.kind, [name for name in node.given if name], node.out[0]
    if kind in EACH or kind in _MORE:
        for operand in given:
            seams.broadcast(operand, out)
    elif kind == "CastLike" or (kind == "Expand" and node.numbers(1) is not None):
        seams.broadcast(given[0], out)
    elif kind == "Transpose":
        pass  # it gets axes of its own, between two Reshapes
    elif kind == "Concat":
        seams.along([*given, out], [int(node.values["axis"])])  # type: ignore[call-overload]
    elif kind == "Softmax":
        seams.along([given[0], out], [int(node.values.get("axis", -1))])  # type: ignore[call-overload]
    elif kind == "LayerNormalization" and int(node.values.get("axis", -1)) in (-1, len(shapes[out]) - 1):  # type: ignore[call-overload]
        seams.along([given[0], out], [-1])
    elif kind == "Split":
        seams.along([given[0], *node.out], [int(node.values.get("axis", 0))])  # type: ignore[call-overload]
    elif kind == "Slice" and (axes := node.axes()) is not None:
        seams.along([given[0], out], axes)
    elif kind in _REDUCE and (axes := node.axes()) is not None:
        _tie_sums(seams, given[0], out, axes, bool(node.values.get("keepdims", 1)))
    elif kind == "Gather" and node.numbers(1) is not None:
        _tie_gather(seams, given[0], out, int(node.values.get("axis", 0)), len(shapes[given[1]]))  # type: ignore[call-overload]
    elif kind == "MatMul" and min(len(shapes[name]) for name in given) > 1:
        _tie_product(seams, given, out)
    else:
        return False
    return True


def _tie_sums(seams: _Seams, given: str, out: str, axes: Sequence[int], keep: bool) -> None:
    rank = len(seams.shapes[given])
    left = [axis for axis in range(rank) if keep or axis not in axes]
    for seam in range(rank - 1):
        if (seam in axes) != (seam + 1 in axes):
            seams.need(given, [seam])
            seams.need(out, [left.index(seam)] if keep else [])
        elif seam in left:
            seams.tie((given, seam), (out, left.index(seam)))
    seams.need(out, [place for place in range(len(left) - 1) if left[place + 1] != left[place] + 1])


def _tie_gather(seams: _Seams, given: str, out: str, axis: int, rank: int) -> None:
    axis %= len(seams.shapes[given])
    tied = set()
    for seam in range(len(seams.shapes[given]) - 1):
        if seam in (axis - 1, axis):
            seams.need(given, [seam])
        else:
            place = seam if seam < axis else seam + rank - 1
            tied.add(place)
            seams.tie((given, seam), (out, place))
    seams.need(out, set(range(len(seams.shapes[out]) - 1)) - tied)


def _tie_product(seams: _Seams, given: Sequence[str], out: str) -> None:
    """Batches meet as elements do; rows belong to them where the second factor is one matrix for all."""
    rows = len(seams.shapes[out]) - 3
    plain = len(seams.shapes[given[1]]) == 2
    for name in given:
        rank = len(seams.shapes[name])
        seams.need(name, [rank - 2] if plain and name == given[0] else [rank - 3, rank - 2])
        _tie_batches(seams, name, out)
    seams.need(out, [rows + 1] if plain else [rows, rows + 1])
    if plain and len(seams.shapes[given[0]]) == rows + 3:
        seams.tie((given[0], rows), (out, rows))
    elif plain:
        seams.need(given[0], [len(seams.shapes[given[0]]) - 3])
        seams.need(out, [rows])


def _tie_batches(seams: _Seams, name: str, out: str) -> None:
    small, large = seams.shapes[name][:-2], seams.shapes[out][:-2]
    ahead = len(large) - len(small)
    padded = (1,) * ahead + small
    for seam in range(len(large) - 1):
        if padded[seam : seam + 2] not in (large[seam : seam + 2], (1, 1)):
            seams.need(out, [seam])
            seams.need(name, [seam - ahead])
        elif seam >= ahead:
            seams.tie((name, seam - ahead), (out, seam))


class Coalesce(GraphPass):
    """See the text above."""

    name = "Coalesce"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        shapes = known_shapes(model)
        if all(len(shape) <= _MOST for shape in shapes.values()):
            return PassResult(model, False, ("no tensor has more than four axes",))
        seams = _Seams(shapes)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for value in (*model.graph.input, *model.graph.output):
            seams.need_all(value.name)
        for node in model.graph.node:
            known = all(name in shapes for name in (*node.input, *node.output) if name)
            if node.op_type not in RELABEL and not (known and _tie(_Node(node, constants, seams))):
                for name in (*node.input, *node.output):
                    seams.need_all(name)
        seams.close()
        left = [name for name in shapes if len(seams.shape(name)) > _MOST]
        notes = (f"{len(seams.closed)} tensors have fewer axes", *(f"{name} keeps its axes" for name in left))
        return PassResult(_rewritten(model, seams, constants), True, notes)


def _rewritten(model: onnx.ModelProto, seams: _Seams, constants: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    edit = GraphEdit(model)
    graph = edit.model.graph
    for tensor in graph.initializer:
        if tensor.name in seams.closed:
            array = numpy_helper.to_array(tensor).reshape(seams.shape(tensor.name))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del graph.value_info[:]
    nodes = []
    for old in graph.node:
        out = old.output[0]
        wide = old.op_type == "Transpose" and len(seams.shapes.get(out, ())) > _MOST
        if not wide and not any(name in seams.closed for name in (*old.input, *old.output)):
            nodes.append(old)
        elif old.op_type in RELABEL:
            target = edit.constant(seams.shape(out), f"{out}/shape", np.int64)
            nodes.append(helper.make_node("Reshape", [old.input[0], target], [out], name=old.name))
        elif old.op_type == "Transpose":
            nodes += _turned(edit, _Node(old, constants, seams))
        else:
            node = onnx.NodeProto()
            node.CopyFrom(old)
            if node.op_type in _CHANGES:
                _CHANGES[node.op_type](edit, _Node(node, constants, seams))
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    edit.drop_unused()
    made = onnx.shape_inference.infer_shapes(edit.model)
    onnx.checker.check_model(made)
    return made


def _set(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _axis(default: int) -> Callable[[GraphEdit, _Node], None]:
    def change(_: GraphEdit, asked: _Node) -> None:
        whole = asked.out[0] if asked.kind == "Concat" else asked.given[0]
        _set(asked.node, "axis", asked.seams.axis(whole, int(asked.values.get("axis", default))))  # type: ignore[call-overload]

    return change


def _axes(edit: GraphEdit, asked: _Node) -> None:
    """Axes of a reduction: those that have become one are one; of a cut, none has."""
    node, given = asked.node, asked.given[0]
    moved = sorted({asked.seams.axis(given, axis) for axis in asked.axes() or []})
    if "axes" in asked.values:
        _set(node, "axes", moved)
    elif len(asked.given) > 1 and asked.given[1]:  # without: all of them, as before
        node.input[1] = edit.constant(moved, f"{node.output[0]}/axes", np.int64)


def _cut(edit: GraphEdit, asked: _Node) -> None:
    node = asked.node
    moved = [asked.seams.axis(asked.given[0], axis) for axis in asked.axes() or []]
    name = edit.constant(moved, f"{node.output[0]}/axes", np.int64)
    if len(node.input) > 3:
        node.input[3] = name
    else:
        node.input.append(name)


def _turned(edit: GraphEdit, asked: _Node) -> list[onnx.NodeProto]:
    """The transposition with as few axes as it can be told with, between a Reshape that makes them and one that
    makes those of its answer."""
    (given,), (out,) = asked.given, asked.out
    shape = asked.seams.shapes[given]
    dims, order = coalesced_axes(shape, list(asked.values.get("perm", range(len(shape))[::-1])))  # type: ignore[call-overload]
    target = edit.constant(dims, f"{out}/axes", np.int64)
    wanted = edit.constant(asked.seams.shape(out), f"{out}/shape", np.int64)
    before, after = edit.fresh(f"{out}/before"), edit.fresh(f"{out}/after")
    return [
        helper.make_node("Reshape", [given, target], [before], name=before),
        helper.make_node("Transpose", [before], [after], name=after, perm=order),
        helper.make_node("Reshape", [after, wanted], [out], name=asked.node.name),
    ]


def _size(edit: GraphEdit, asked: _Node) -> None:
    asked.node.input[1] = edit.constant(asked.seams.shape(asked.out[0]), f"{asked.out[0]}/size", np.int64)


_CHANGES: dict[str, Callable[[GraphEdit, _Node], None]] = {
    "Concat": _axis(0), "Softmax": _axis(-1), "Split": _axis(0), "Gather": _axis(0), "Slice": _cut,
    "LayerNormalization": _axis(-1),
 "Expand": _size, **dict.fromkeys(_REDUCE, _axes),
}  # fmt: skip
