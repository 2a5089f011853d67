"""Bias correction: rounding a weight shifts the mean of its output; the bias takes the shift back.

The expected shift of output channel o is sum_i E[x_i] * sum_taps (Wq - W)[o, i], with E[x_i] the mean of input channel
i over the calibration crops (Nagel et al., "Data-free quantization through weight equalization and bias correction",
2019, with measured instead of assumed means). Borders are left out: padding is a small part of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from clusir.export.quantize.layers import groups_of

if TYPE_CHECKING:
    from clusir.export.quantize.layers import Graph, Layer
    from clusir.export.quantize.ranges import TensorRange

__all__ = ["add_zero_biases", "correct_biases"]


def add_zero_biases(graph: Graph) -> ModelProto:
    """A copy of the model in which every convolution has a bias tensor of its own."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    shared: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            shared[name] = shared.get(name, 0) + 1
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in graph.initialisers:
            continue
        present = len(node.input) > 2 and node.input[2] != ""
        if present and (node.input[2] not in graph.initialisers or shared[node.input[2]] == 1):
            continue
        channels = _output_channels(node.op_type, graph.initialisers[node.input[1]].dims, node)
        value = graph.weight(node.input[2]) if present else np.zeros(channels, np.float32)
        name = f"{node.input[1]}.{node.name}.bias"
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        del node.input[2:]
        node.input.append(name)
    return model


def _output_channels(op: str, dims: Iterable[int], node: NodeProto) -> int:
    shape = list(dims)
    if op == "Conv":
        return int(shape[0])
    groups = groups_of(node)
    return int(shape[1] * groups)


def correct_biases(
    model: ModelProto, graph: Graph, layers: Mapping[str, Layer], ranges: Mapping[str, TensorRange]
) -> None:
    """Correct, in place, the int32 biases of the quantised ``layers`` of ``model``, which was made from ``graph``."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in graph.convolutions():
        if node.input[1] not in layers or node.op_type != "Conv" or len(node.input) < 3:
            continue
        weight, bias = node.input[1], node.input[2]
        integers, scale = tensors.get(f"{weight}_quantized"), tensors.get(f"{weight}_scale")
        bias_integers, bias_scale = tensors.get(f"{bias}_quantized"), tensors.get(f"{bias}_quantized_scale")
        if integers is None or scale is None or bias_integers is None or bias_scale is None:
            continue
        original = graph.weight(weight).astype(np.float64)
        steps = np.atleast_1d(numpy_helper.to_array(scale)).astype(np.float64).reshape(-1, 1, 1, 1)
        error = (numpy_helper.to_array(integers) * steps - original).sum(axis=(2, 3))
        mean = ranges[node.input[0]].mean
        groups = groups_of(node)
        outputs, per_group = error.shape
        inputs = mean.reshape(groups, per_group).repeat(outputs // groups, axis=0)
        shift = (error * inputs).sum(axis=1)
        step = np.atleast_1d(numpy_helper.to_array(bias_scale)).astype(np.float64)
        values = numpy_helper.to_array(bias_integers).astype(np.int64) - np.round(shift / step).astype(np.int64)
        bias_integers.CopyFrom(numpy_helper.from_array(values.astype(np.int32), bias_integers.name))
