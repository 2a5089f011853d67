"""KeepBatch: let a runtime see that the batch axis is one and the same everywhere.

torch writes ``view`` with a first length of -1 and ``expand`` with a computed shape; behind either, a runtime knows no
longer that two maps have the same shape. ONNX Runtime then neither folds a residual addition into its convolution nor
drops the reshapes around it. A 0 ("as in the input") keeps the axis, and an Expand in front of an operator that
broadcasts by itself is not needed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from clusir.export.base import PassResult
from clusir.export.graph_edit import GraphEdit
from clusir.export.graph_probe import LinearGraph

__all__ = ["KeepBatch"]

_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div"))


class KeepBatch:
    """Reshape to [-1, known, ...] becomes [0, known, ...] where axis 0 stays; needless Expand goes."""

    name = "KeepBatch"

    def requires(self, model: onnx.ModelProto) -> None:
        pass

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        linear = edit.linear()
        reshapes = [n for n in edit.model.graph.node if n.op_type == "Reshape" and _keeps_first(linear, n)]
        for node in reshapes:
            shape = numpy_helper.to_array(_initializer(edit.model, node.input[1])).copy()
            shape[0] = 0
            node.input[1] = edit.constant(shape, f"{node.output[0]}/kept", np.int64)
            del node.attribute[:]  # allowzero, under which 0 would be a length
        expands = [n for n in edit.model.graph.node if n.op_type == "Expand" and _needless(linear, n)]
        for node in expands:
            edit.redirect(node.output[0], node.input[0])
        if not reshapes and not expands:
            return PassResult(model, False, ("no Reshape or Expand hides the batch axis",))
        edit.drop_unused()
        note = f"{len(reshapes)} Reshape keep the batch axis, {len(expands)} Expand are left to broadcasting"
        return PassResult(edit.model, True, (note,))

    def ensures(self, model: onnx.ModelProto) -> None:
        onnx.checker.check_model(model)


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def _keeps_first(linear: LinearGraph, node: onnx.NodeProto) -> bool:
    """Whether a Reshape to [-1, a, b, ...] leaves axis 0 alone: everything behind it has as many elements as before."""
    target, before = linear.constants.get(node.input[1]), linear.shape(node.input[0])
    if target is None or not before or node.input[1] not in {t.name for t in linear.graph.initializer}:
        return False
    lengths = [int(v) for v in target.reshape(-1)]
    if len(lengths) < 2 or lengths[0] != -1 or min(lengths[1:]) < 1:
        return False
    return int(np.prod(before[1:])) == int(np.prod(lengths[1:]))


def _needless(linear: LinearGraph, node: onnx.NodeProto) -> bool:
    """Whether every reader of an Expand would stretch its input to the same shape."""
    value, shape = node.output[0], linear.shape(node.output[0])
    users = linear.users.get(value, [])
    if shape is None or value in linear.outputs or not users:
        return False
    for user in users:
        others = [i for i in user.input if i != value]
        if user.op_type not in _BROADCAST or len(others) != 1 or linear.shape(others[0]) != shape:
            return False
    return True
