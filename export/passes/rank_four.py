"""RankFour: no tensor of more than four axes, for runtimes of phones, which have none.

Two neighbouring axes of a five-axis tensor become one, never the first (the batch): what is computed element by
element, or in matrices of the last two axes, does not see it. A factor that is constant along one of the two is
repeated, and a transposition of the two becomes a gathering by constant indices. The numbers stay the same, bit for
bit. Every shape must be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import inferred

__all__ = ["EACH", "RELABEL", "RankFour", "known_shapes", "rank_faults"]

_RANK = 4
_WIDE = _RANK + 1
RELABEL = {"Reshape", "Unsqueeze", "Squeeze", "Flatten"}  # the elements stay in their order
EACH = {
    "Abs", "Add", "Cast", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
_FORBIDDEN = {"If", "Loop", "Scan", "Einsum"}


def rank_faults(model: onnx.ModelProto) -> list[str]:
    """What keeps a graph from the profile ``rank4``, one sentence each: tensors of more than four axes or unknown
    shape, branches and loops, Einsum, a Resize whose sizes are computed."""
    shapes = known_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    faults = [f"{name} has {len(shape)} axes" for name, shape in shapes.items() if len(shape) > _RANK]
    for node in model.graph.node:
        if node.op_type in _FORBIDDEN:
            faults.append(f"{node.op_type} {node.name} stands in it")
        if node.op_type == "Resize" and not all(name in constants for name in node.input[1:] if name):
            faults.append(f"Resize {node.name} takes a size that is computed")
        faults += [f"the shape of {name} is not known" for name in node.output if name and name not in shapes]
    return faults


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of those values whose every length is known."""
    graph = inferred(model)
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return found


class RankFour(GraphPass):
    """Tensors of five axes get four, where the operators around them allow it."""

    name = "RankFour"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        shapes = known_shapes(model)
        ends = {value.name for value in (*model.graph.input, *model.graph.output)}
        done: list[str] = []
        left: list[str] = []
        merged: dict[str, int] = {}  # wide value -> the first of its two axes that become one
        for values, nodes in _regions(model, shapes):
            if any(len(shapes[value]) > _WIDE for value in values) or values & ends:
                left.append(f"{min(values)}: more than five axes, or an input or output of the graph")
                continue
            axis = next((k for k in (1, 2, 3) if all(_allows(node, k, shapes) for node in nodes)), None)
            if axis is None:
                kinds = sorted({node.op_type for node in nodes})
                left.append(f"{min(values)}: no two axes of it become one through {', '.join(kinds)}")
                continue
            merged |= dict.fromkeys(values, axis)
            done.append(f"{min(values)}: {len(values)} tensors")
        if not merged:
            return PassResult(model, False, tuple(left) or ("no tensor has more than four axes",))
        return PassResult(_rewritten(model, shapes, merged), True, (*done, *left))


def _regions(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[set[str], list[onnx.NodeProto]]]:
    """Wide values that must change together, with the operators between them."""
    wide = {name for name, shape in shapes.items() if len(shape) > _RANK}
    parent = {name: name for name in wide}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    between = []
    for node in model.graph.node:
        touched = [name for name in (*node.input, *node.output) if name in wide]
        if touched and node.op_type not in RELABEL:
            between.append((touched[0], node))
            for name in touched[1:]:
                parent[root(name)] = root(touched[0])
    groups: dict[str, tuple[set[str], list[onnx.NodeProto]]] = {}
    for name in sorted(wide):
        groups.setdefault(root(name), (set(), []))[0].add(name)
    for name, node in between:
        groups[root(name)][1].append(node)
    return list(groups.values())


def _allows(node: onnx.NodeProto, axis: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the operator computes the same on tensors whose axes ``axis`` and ``axis + 1`` are one."""
    known = all(name in shapes for name in (*node.input, *node.output) if name)
    if not known or any(len(shapes[name]) != _WIDE for name in node.output if name):
        return False
    if node.op_type in EACH:
        return all(_repeats(shapes[name], shapes[node.output[0]], axis) is not None for name in node.input if name)
    if node.op_type == "MatMul":
        matrices = all(len(shapes[name]) > 1 for name in node.input)
        batches = [(*shapes[name][:-2], 1, 1) for name in node.input]
        out = shapes[node.output[0]]
        return axis == 1 and matrices and all(_repeats(batch, out, axis) is not None for batch in batches)
    return node.op_type == "Transpose" and _permutation(node, axis) is not None


def _padded(shape: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (_WIDE - len(shape)) + tuple(shape)


def _repeats(shape: Sequence[int], out: Sequence[int], axis: int) -> str | None:
    """How an operand meets a result on the two axes: "" as it is, "each" its elements repeated, "all" the whole of them
    repeated; None where it is something else."""
    here, there = _padded(shape)[axis : axis + 2], tuple(out[axis : axis + 2])
    if here in (there, (1, 1)):
        return ""
    if here == (there[0], 1):
        return "each"
    return "all" if here == (1, there[1]) else None


def _permutation(node: onnx.NodeProto, axis: int) -> list[int] | str | None:
    """The permutation of four axes; "swap" where only the two change places; None for any other."""
    given = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(_WIDE))[::-1])
    swapped = list(range(_WIDE))
    swapped[axis : axis + 2] = [axis + 1, axis]
    if given == swapped:
        return "swap"
    if given[axis : axis + 2] != [axis, axis + 1]:
        return None
    return [old - (old > axis) for old in given if old != axis + 1]


def _merge(shape: Sequence[int], axis: int) -> list[int]:
    return [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]


def _rewritten(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], merged: Mapping[str, int]
) -> onnx.ModelProto:
    edit = GraphEdit(model)
    graph = edit.model.graph
    for tensor in graph.initializer:
        if tensor.name in merged:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(array.reshape(_merge(array.shape, merged[tensor.name])), tensor.name)
            )
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        axis = next((merged[name] for name in (*node.output, *node.input) if name in merged), None)
        if axis is None:
            graph.node.append(node)
        elif node.op_type in RELABEL:
            out = node.output[0]
            shape = _merge(shapes[out], merged[out]) if out in merged else list(shapes[out])
            target = edit.constant(shape, f"{out}/four", np.int64)
            graph.node.append(helper.make_node("Reshape", [node.input[0], target], [out], name=node.name))
        elif node.op_type == "Transpose":
            _transposed(edit, node, axis, shapes[node.input[0]])
        else:
            out_shape = shapes[node.output[0]]
            node.input[:] = [name and _operand(edit, node, name, axis, shapes[name], out_shape) for name in node.input]
            graph.node.append(node)
    edit.drop_unused()
    onnx.checker.check_model(edit.model)
    return edit.model


def _transposed(edit: GraphEdit, node: onnx.NodeProto, axis: int, shape: Sequence[int]) -> None:
    order = _permutation(node, axis)
    if order == "swap":
        rows, columns = shape[axis : axis + 2]
        places = np.arange(rows * columns).reshape(rows, columns).T.reshape(-1)
        inputs = [node.input[0], edit.constant(places, f"{node.output[0]}/places", np.int64)]
        made = helper.make_node("Gather", inputs, node.output, name=node.name, axis=axis)
    else:
        made = helper.make_node("Transpose", node.input, node.output, name=node.name, perm=order)
    edit.model.graph.node.append(made)


def _operand(
    edit: GraphEdit, node: onnx.NodeProto, name: str, axis: int, shape: Sequence[int], out: Sequence[int]
) -> str:
    """An operand of a result whose two axes are one: itself, or with its own two axes as one and repeated."""
    matrices = node.op_type == "MatMul"
    how = _repeats((*shape[:-2], 1, 1) if matrices and len(shape) > 2 else shape, out, axis)
    if matrices and len(shape) == 2:
        return name
    value = name
    if len(shape) < _WIDE:
        if len(shape) <= _WIDE - (axis + 2):  # it has neither of the two axes
            return name
        value = edit.reshape(name, _merge(_padded(shape), axis), f"{name}/four")
    if not how:
        return value
    count, times = (out[axis], out[axis + 1]) if how == "each" else (out[axis + 1], out[axis])
    places = np.repeat(np.arange(count), times) if how == "each" else np.tile(np.arange(count), times)
    return edit.node(
        "Gather", [value, edit.constant(places, f"{name}/places", np.int64)], f"{name}/repeated", axis=axis
    )
