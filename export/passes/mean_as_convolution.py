"""MeanAsConvolution: the mean over channels of each pixel as a 1x1 convolution to one channel.

A channel LayerNorm, written out, takes two such means. As ReduceMean over axis 1 they run over the slowest axis of the
map and are, on ONNX Runtime, the largest part of such a network beside its convolutions; as constant convolutions they
run at the speed of those.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import inferred

__all__ = ["MeanAsConvolution"]


class MeanAsConvolution(GraphPass):
    """ReduceMean over axis 1 of a float BxCxHxW map, the axis kept, becomes Conv 1x1 with weights 1/C."""

    name = "MeanAsConvolution"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        channels = _maps(edit.model)
        given = {i.name for i in edit.model.graph.input}  # an initializer among them is a default, no constant
        constants = {t.name: numpy_helper.to_array(t) for t in edit.model.graph.initializer if t.name not in given}
        means: dict[str, str] = {}
        for node in [n for n in edit.model.graph.node if n.op_type == "ReduceMean"]:
            count = channels.get(node.input[0])
            if count is None or not _over_channels(node, constants):
                continue
            weight = edit.constant(np.full((1, count, 1, 1), 1.0 / count), f"{node.output[0]}/weight")
            means[node.output[0]] = edit.node("Conv", [node.input[0], weight], f"{node.output[0]}/mean")
        if not means:
            return PassResult(model, False, ("no mean over the channels of a map was found",))
        edit.redirect_all(means)
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(means)} means over channels are 1x1 convolutions",))


def _maps(model: onnx.ModelProto) -> dict[str, int]:
    """The number of channels of every float value of rank 4 that has a known one."""
    found = {}
    for value in [*inferred(model).value_info, *model.graph.input]:
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.elem_type == TensorProto.FLOAT and len(dims) == 4 and dims[1].dim_value > 1:
            found[value.name] = int(dims[1].dim_value)
    return found


def _over_channels(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axes = constants.get(node.input[1]) if len(node.input) > 1 else np.array(values.get("axes", []))
    return values.get("keepdims", 1) == 1 and axes is not None and axes.reshape(-1).tolist() in ([1], [-3])
