"""SplitConvolution: a convolution whose output is only split into channels is several convolutions.

The split copies the whole map, and ONNX Runtime leaves its blocked layout for it; the weights cost nothing to cut. A
depthwise convolution is cut with the convolution in front of it: the gated feed-forward of Restormer's family (1x1,
depthwise 3x3, chunk, GELU(a) * b) becomes two lanes that meet in the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit, plain_convolution
from clusir.export.graph.probe import LinearGraph

__all__ = ["SplitConvolution"]

_KEPT = ("pads", "strides", "dilations")
_NARROWEST = 16  # channels of a block with AVX-512: a narrower lane would leave a part of it empty


class SplitConvolution(GraphPass):
    """Conv -> Split over channels becomes one Conv for each part; so does Conv -> depthwise Conv -> Split."""

    name = "SplitConvolution"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        linear = edit.linear()
        parts_of: dict[str, str] = {}
        notes: list[str] = []
        for split in [n for n in edit.model.graph.node if n.op_type == "Split"]:
            convs = _convolutions(linear, split)
            if not convs:
                continue
            channels = _channels(linear, split, convs[0])
            lanes = [convs[-1].input[0]] * len(channels)
            for conv in reversed(convs):
                lanes = _cut(edit, conv, lanes, channels)
            parts_of.update(zip(split.output, lanes, strict=True))
            notes.append(f"Conv + Split {split.input[0]} became {len(channels) * len(convs)} Convs")
        if not notes:
            return PassResult(model, False, ("no convolution is only split",))
        edit.redirect_all(parts_of)
        edit.drop_unused()
        return PassResult(edit.model, True, tuple(notes))


def _convolutions(linear: LinearGraph, split: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The convolutions to cut, the last one first: a plain one, or a depthwise one and the plain one before it. Empty
    where somebody else reads them, where the split is not over channels, or where a part is narrow."""
    axis = next((a.i for a in split.attribute if a.name == "axis"), 0)
    if axis != 1 or not linear.is_float(split.input[0]) or any(p in linear.outputs for p in split.output):
        return []
    found: list[onnx.NodeProto] = []
    value = split.input[0]
    while not found or _depthwise(linear, found[-1]):
        conv = linear.producer.get(value)
        alone = len(linear.users.get(value, [])) == 1 and value not in linear.outputs
        if conv is None or not alone or not (plain_convolution(conv) or _depthwise(linear, conv)):
            return []
        if any(i not in linear.constants for i in conv.input[1:] if i):
            return []
        found.append(conv)
        value = conv.input[0]
    return found if min(_channels(linear, split, found[0])) >= _NARROWEST else []


def _channels(linear: LinearGraph, split: onnx.NodeProto, conv: onnx.NodeProto) -> list[int]:
    """How many output channels of the convolution go to each part; [0] where that is not fixed."""
    total, parts = linear.constants[conv.input[1]].shape[0], len(split.output)
    if any(a.name == "split" for a in split.attribute):  # where sizes stood before opset 13
        return [0]
    if len(split.input) > 1 and split.input[1]:
        sizes = linear.constants.get(split.input[1])
        return [0] if sizes is None else [int(size) for size in sizes]
    each = -(-total // parts)  # ONNX Split: equal parts, the last one smaller where they do not come out even
    return [each] * (parts - 1) + [total - each * (parts - 1)]


def _depthwise(linear: LinearGraph, conv: onnx.NodeProto) -> bool:
    """Whether a Conv takes one channel to one, each by itself, with explicit padding."""
    if conv.op_type != "Conv" or conv.input[1] not in linear.constants:
        return False
    values = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    channels, width = linear.constants[conv.input[1]].shape[:2]
    return width == 1 and values.get("group", 1) == channels > 1 and values.get("auto_pad", b"NOTSET") == b"NOTSET"


def _cut(edit: GraphEdit, conv: onnx.NodeProto, sources: Sequence[str], channels: Sequence[int]) -> list[str]:
    """One Conv for each part of the output channels, each with its own source; returns their outputs."""
    ends = np.cumsum(channels)[:-1]
    weights = np.split(edit.array(conv.input[1]), ends)
    has_bias = len(conv.input) > 2 and bool(conv.input[2])
    biases = np.split(edit.array(conv.input[2]), ends) if has_bias else [None] * len(weights)
    values = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    kept = {name: values[name] for name in _KEPT if name in values}
    depthwise = values.get("group", 1) > 1
    lanes = []
    for k, (source, weight, bias) in enumerate(zip(sources, weights, biases, strict=True)):
        hint = f"{conv.output[0]}/lane{k}"
        inputs = [source, edit.constant(weight, f"{hint}/weight")]
        if bias is not None:
            inputs.append(edit.constant(bias, f"{hint}/bias"))
        lanes.append(edit.node("Conv", inputs, hint, group=len(weight) if depthwise else 1, **kept))
    return lanes
