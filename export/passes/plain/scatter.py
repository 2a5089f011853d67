"""What is written to, or read from, constant places: a gathering along one axis, by a list of indices."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.passes.plain.base import Shapes

__all__ = ["gather", "gather_nd", "scatter"]


def _places(edit: GraphEdit, name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], int] | None:
    """Constant indices of ScatterND and GatherND as places in the first axes flattened into one, and how many axes
    those are; None where they are computed."""
    tensor = next((t for t in edit.model.graph.initializer if t.name == name), None)
    if tensor is None:
        return None
    indices = numpy_helper.to_array(tensor)
    axes = indices.shape[-1]
    rows = indices.reshape(-1, axes) % np.asarray(shape[:axes], np.int64)
    return np.asarray(np.ravel_multi_index(tuple(rows.T), shape[:axes]), np.int64), axes


def scatter(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    """ScatterND that overwrites: the rows of the data and the new rows side by side, and of these the right ones."""
    if any(a.name == "reduction" and helper.get_attribute_value(a) != b"none" for a in node.attribute):
        return ""
    data, indices, updates = node.input
    shape, hint = shapes[data], node.output[0]
    found = _places(edit, indices, shape)
    if found is None:
        return ""
    places, axes = found
    rows, rest = math.prod(shape[:axes]), shape[axes:]
    which = np.arange(rows)
    which[places] = rows + np.arange(len(places))
    parts = [
        edit.reshape(data, (rows, *rest), f"{hint}/old"),
        edit.reshape(updates, (len(places), *rest), f"{hint}/new"),
    ]
    both = edit.node("Concat", parts, f"{hint}/both", axis=0)
    picked = edit.node("Gather", [both, edit.constant(which, f"{hint}/which", np.int64)], f"{hint}/picked", axis=0)
    return edit.reshape(picked, shape, f"{hint}/whole")


def gather_nd(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    if any(a.name == "batch_dims" and a.i for a in node.attribute):
        return ""
    data, indices = node.input
    shape, hint = shapes[data], node.output[0]
    found = _places(edit, indices, shape)
    if found is None:
        return ""
    places, axes = found
    rows = edit.reshape(data, (math.prod(shape[:axes]), *shape[axes:]), f"{hint}/rows")
    picked = edit.node("Gather", [rows, edit.constant(places, f"{hint}/which", np.int64)], f"{hint}/picked", axis=0)
    return edit.reshape(picked, shapes[hint], f"{hint}/whole")


def gather(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    """By a table of indices: by all of them in a row, and then a Reshape."""
    tensor = next((t for t in edit.model.graph.initializer if t.name == node.input[1]), None)
    if tensor is None:
        return ""
    hint, axis = node.output[0], next((a.i for a in node.attribute if a.name == "axis"), 0)
    row = edit.constant(numpy_helper.to_array(tensor).reshape(-1), f"{hint}/row", np.int64)
    return edit.reshape(
        edit.node("Gather", [node.input[0], row], f"{hint}/picked", axis=axis), shapes[hint], f"{hint}/whole"
    )
