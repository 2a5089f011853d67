"""Bias correction: rounding a weight shifts the mean of its output; the bias takes the shift back.

The expected shift of output channel o is sum_i E[x_i] * sum_taps (Wq - W)[o, i], with E[x_i] the mean of input channel
i over the calibration crops. A transposed convolution spreads its taps over stride^2 places, each of which gets its
share (Nagel et al., "Data-free quantization through weight equalization and bias correction",
2019, with measured instead of assumed means). Borders are left out: padding is a small part of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from clusir.export.graph.index import Names
from clusir.export.quantize.layers import groups_of
from clusir.export.quantize.prepared import Described, Prepared

if TYPE_CHECKING:
    from clusir.export.quantize.layers import Graph, Layer
    from clusir.export.quantize.ranges import TensorRange

__all__ = ["AddBiases", "CorrectBiases", "add_zero_biases", "correct_biases"]


@dataclass(frozen=True)
class AddBiases(Described):
    """Give every convolution a bias, zero where it had none, for CorrectBiases to use; stands before Measure."""

    def apply(self, prepared: Prepared) -> Prepared:
        return prepared.with_model(add_zero_biases(prepared.graph))


@dataclass(frozen=True)
class CorrectBiases(Described):
    """Take the mean error that rounding weights leaves back out through the biases; needs integers."""

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.model is not None:
            chosen = {layer.name: layer for layer in prepared.chosen}
            correct_biases(prepared.model, prepared.graph, chosen, prepared.ranges)
        return prepared


def add_zero_biases(graph: Graph) -> ModelProto:
    """A copy of the model, whose convolutions share no constants, in which every convolution has a bias tensor."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    names = Names(model.graph)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in graph.initialisers:
            continue
        if len(node.input) > 2 and node.input[2]:
            continue
        channels = _output_channels(node.op_type, graph.initialisers[node.input[1]].dims, node)
        name = names.fresh(f"{node.input[1]}.{node.name}.bias")
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(channels, np.float32), name))
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
        if node.input[1] not in layers or len(node.input) < 3:
            continue
        weight, bias = node.input[1], node.input[2]
        integers, scale = tensors.get(f"{weight}_quantized"), tensors.get(f"{weight}_scale")
        bias_integers, bias_scale = tensors.get(f"{bias}_quantized"), tensors.get(f"{bias}_quantized_scale")
        if integers is None or scale is None or bias_integers is None or bias_scale is None:
            continue
        original = graph.weight(weight).astype(np.float64)
        rounded = numpy_helper.to_array(integers).astype(np.float64)
        steps = np.atleast_1d(numpy_helper.to_array(scale)).astype(np.float64)
        groups, mean = groups_of(node), ranges[node.input[0]].mean
        if node.op_type == "Conv":
            error = (rounded * steps.reshape(-1, *[1] * (original.ndim - 1)) - original).sum(
                axis=tuple(range(2, original.ndim))
            )
            outputs, per_group = error.shape
            inputs = mean.reshape(groups, per_group).repeat(outputs // groups, axis=0)
            shift = (error * inputs).sum(axis=1)
        else:
            shift = _transposed_shift(node, rounded, steps, original, mean)
        step = np.atleast_1d(numpy_helper.to_array(bias_scale)).astype(np.float64)
        values = numpy_helper.to_array(bias_integers).astype(np.int64) - np.round(shift / step).astype(np.int64)
        bias_integers.CopyFrom(numpy_helper.from_array(values.astype(np.int32), bias_integers.name))


def _transposed_shift(
    node: NodeProto,
    rounded: NDArray[np.float64],
    steps: NDArray[np.float64],
    original: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The mean shift of each output channel of a transposed convolution: weights inputs x outputs of a group x taps."""
    groups, per_group = groups_of(node), original.shape[1]
    # A scale per output channel belongs to axis 1; where there are groups, the quantiser gives one for each of a group.
    scale = steps if steps.size == 1 else steps.reshape(1, -1, *[1] * (original.ndim - 2))
    error = (rounded * scale - original).sum(axis=tuple(range(2, original.ndim)))
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])
    weighted = (error * mean[:, None]).reshape(groups, -1, per_group).sum(axis=1).reshape(-1)
    return weighted / float(np.prod(strides))
