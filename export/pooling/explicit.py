"""Operators that pool the picture inside themselves, written out: norms, softmax over pixels, means in two steps.

``InstanceNormalization`` becomes a mean, a mean of squares and plain arithmetic; a ``Softmax`` over the pixels a
maximum, a sum and a quotient; a mean of the columns of a mean of the rows one mean. The result is the same function.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex
from clusir.export.graph.norm import write_norm
from clusir.export.pooling.axes import Axes

__all__ = ["REDUCTIONS", "masked_operand", "reduced_axes", "written_out"]

REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceSumSquare": "square",
    "ReduceL2": "norm",
    "ReduceL1": "size",
    "ReduceMax": "max",
    "ReduceMin": "min",
}


def reduced_axes(index: GraphIndex, node: NodeProto, rank: int) -> tuple[int, ...] | None:
    """The axes (from 0 on) of a Reduce operator of opset 18; None where they are computed."""
    if len(node.input) < 2 or not node.input[1]:
        return () if index.attribute(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    axes = index.integers(node.input[1])
    if axes is None:
        return None
    return tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))


def written_out(model: ModelProto, axes: Axes) -> ModelProto:
    """The model with such operators written out, as far as they pool over what varies with the picture's size."""
    edit = GraphEdit(model)
    for node in list(edit.model.graph.node):
        source = node.input[0] if node.input else ""
        if source not in axes.shapes or not axes.varying(source):
            continue
        rank = len(axes.shape(source))
        if node.op_type == "InstanceNormalization":
            _instance_norm(edit, node, rank)
        elif node.op_type == "Softmax" and axes.varying(source) == (
            axis := GraphIndex.attribute(node, "axis", -1) % rank,
        ):
            _softmax(edit, node, axis)
        elif node.op_type == "ReduceMean":
            _merge(edit, node, rank)
    edit.drop_unused()
    return edit.model


def _axis(node: NodeProto, rank: int) -> int:
    return GraphIndex.attribute(node, "axis", -1) % rank


def _instance_norm(edit: GraphEdit, node: NodeProto, rank: int) -> None:
    source, name = node.input[0], node.output[0]
    axes = edit.constant(np.arange(2, rank), f"{name}/axes", np.int64)
    middle = edit.node("Sub", [source, edit.node("ReduceMean", [source, axes], f"{name}/mean")], f"{name}/centred")
    square = edit.node("Mul", [middle, middle], f"{name}/square")
    variance = edit.node("ReduceMean", [square, axes], f"{name}/variance")
    write_norm(edit, node, middle, variance, rank)


def _softmax(edit: GraphEdit, node: NodeProto, axis: int) -> None:
    source, name = node.input[0], node.output[0]
    axes = edit.constant([axis], f"{name}/axes", np.int64)
    lowered = edit.node("Sub", [source, edit.node("ReduceMax", [source, axes], f"{name}/most")], f"{name}/lowered")
    raised = edit.node("Exp", [lowered], f"{name}/raised")
    total = edit.node("ReduceSum", [raised, axes], f"{name}/total")
    edit.redirect(name, edit.node("Div", [raised, total], f"{name}/made"))


def _merge(edit: GraphEdit, first: NodeProto, rank: int) -> None:
    """A mean over some axes whose only reader is a mean over others."""
    index = GraphIndex(edit.model.graph)
    readers = index.users.get(first.output[0], [])
    one = reduced_axes(index, first, rank)
    if len(readers) != 1 or readers[0].op_type != "ReduceMean" or first.output[0] in index.outputs or one is None:
        return
    second = readers[0]
    kept = [index.attribute(node, "keepdims", 1) for node in (first, second)]
    left = list(range(rank)) if kept[0] else [axis for axis in range(rank) if axis not in one]
    two = reduced_axes(index, second, len(left))
    if two is None or kept[0] != kept[1]:
        return
    axes = edit.constant(sorted({*one, *(left[axis] for axis in two)}), f"{second.output[0]}/axes", np.int64)
    second.input[:] = [first.input[0], axes]


def masked_operand(node: NodeProto) -> tuple[str, str] | None:
    """(letters of the first operand, letters of the result) of an Einsum of two operands; None for another."""
    equation = helper.get_attribute_value(next(a for a in node.attribute if a.name == "equation")).decode()
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    operands = inputs.split(",")
    if not arrow or len(operands) != 2 or "." in equation or any(len(set(o)) < len(o) for o in operands):
        return None
    return operands[0], result
