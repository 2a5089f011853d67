"""FuseUpsample: a 1x1 convolution and DepthToSpace are one transposed convolution without overlap.

ONNX Runtime's DepthToSpace costs more than the convolution in front of it and needs its four-fold output in memory.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit, plain_convolution, pointwise_weight
from clusir.export.graph.probe import LinearGraph

__all__ = ["FuseUpsample"]


class FuseUpsample(GraphPass):
    """Conv 1x1 -> DepthToSpace becomes ConvTranspose with kernel and stride of the block size."""

    name = "FuseUpsample"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        changed = False
        for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "DepthToSpace"]:
            linear = edit.linear()
            node = linear.producer[value]
            conv = linear.producer.get(node.input[0])
            weight = pointwise_weight(linear, conv)
            reason = _reason(linear, node, conv, weight)
            if reason or conv is None or weight is None:
                notes.append(f"{value} stays DepthToSpace: {reason}")
                continue
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            block = attributes["blocksize"]
            outputs, inputs = len(weight) // block**2, weight.shape[1]
            if attributes.get("mode", b"DCR") == b"CRD":
                kernel = weight.reshape(outputs, block, block, inputs).transpose(3, 0, 1, 2)
            else:
                kernel = weight.reshape(block, block, outputs, inputs).transpose(3, 2, 0, 1)
            constant = edit.constant(kernel, f"{value}/kernel")
            edit.redirect(
                value,
                edit.node("ConvTranspose", [conv.input[0], constant], f"{value}/transposed", strides=[block, block]),
            )
            notes.append(f"{value} is a transposed convolution")
            changed = True
        if not changed:
            return PassResult(model, False, tuple(notes) or ("the graph has no DepthToSpace",))
        edit.drop_unused()
        return PassResult(edit.model, True, tuple(notes))


def _reason(
    linear: LinearGraph, node: onnx.NodeProto, conv: onnx.NodeProto | None, weight: NDArray[np.generic] | None
) -> str:
    """Why a DepthToSpace stays; empty where it can go."""
    made = node.input[0]
    if conv is None or not plain_convolution(conv) or conv.input[1] not in linear.constants:
        return "no plain convolution with constant weights stands before it"
    if linear.constants[conv.input[1]].shape[2:] != (1, 1):
        return "the convolution before it is larger than 1x1, and would be split into four"
    if weight is None:
        return "the convolution before it has padding, or is not float32"
    if len(conv.input) > 2 and conv.input[2]:
        return "the convolution before it has a bias, one for each pixel of the cell"
    if len(linear.users[made]) > 1 or made in linear.outputs:
        return "something else reads the convolution before it"
    return ""
