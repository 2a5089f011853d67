"""KeepBlockedLayout: bring a residual stream back into ONNX Runtime's blocked channel layout, once.

ONNX Runtime computes convolutions on channels in blocks (NCHWc) and folds ``x + conv(..)`` into the convolution when x
is in that layout too. DepthToSpace and ConvTranspose know the plain layout only, so behind them every residual block of
the stream pays for two reorders and a separate Add. A MaxPool with a 1x1 window changes no value and is an operator of
the blocked layout: behind it the stream stays there.
"""

from __future__ import annotations

import onnx

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph_edit import GraphEdit
from clusir.export.graph_probe import LinearGraph

__all__ = ["KeepBlockedLayout"]

_PLAIN_LAYOUT = frozenset(("DepthToSpace", "ConvTranspose"))


class KeepBlockedLayout(GraphPass):
    """Put a 1x1 MaxPool behind ``Add(plain layout, ..)`` where a residual block of convolutions follows."""

    name = "KeepBlockedLayout"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        linear = edit.linear()
        starts = [n.output[0] for n in edit.model.graph.node if n.op_type == "Add" and _starts_residual(linear, n)]
        for value in starts:
            edit.redirect(value, edit.node("MaxPool", [value], f"{value}/blocked", kernel_shape=[1, 1]))
        if not starts:
            return PassResult(model, False, ("no residual stream begins behind DepthToSpace or ConvTranspose",))
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(starts)} residual streams return to the blocked layout",))


def _starts_residual(linear: LinearGraph, add: onnx.NodeProto) -> bool:
    value = add.output[0]
    if value in linear.outputs or not any(
        i in linear.producer and linear.producer[i].op_type in _PLAIN_LAYOUT for i in add.input
    ):
        return False
    kinds = {u.op_type for u in linear.users.get(value, [])}
    residual = any(
        u.op_type == "Add" and any(i in linear.producer and linear.producer[i].op_type == "Conv" for i in u.input)
        for u in linear.users.get(value, [])
    )
    return residual and "Conv" in kinds
