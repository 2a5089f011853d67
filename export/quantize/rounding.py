"""Weights rounded for the least error of the layer's output, not each to the nearest integer.

Rounding errors of one output channel add up over its inputs, and the inputs of a restoration network are far from
independent: neighbouring pixels are nearly equal, and channels have means. Rounding one weight after the other and
passing each error on to the weights still to come, as far as their inputs move together, leaves the part of the error
that the inputs cannot see. This is GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", arXiv 2210.17323, algorithm 1, without its blocks), on the patches that a convolution reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from clusir.export.quantize.layers import Graph, Layer, groups_of
from clusir.export.quantize.prepared import Described, Prepared
from clusir.export.quantize.ranges import TensorRange
from clusir.export.quantize.statistics import Moments

__all__ = ["RoundLeastSquares", "patches", "round_least_squares", "round_weights", "supported"]

_PATCHES = 1024  # of a crop; 64 crops then give 75 patches for each weight of a 3x3 convolution of 96 channels
_DAMPING = 0.01  # of the mean of the diagonal, as in the paper


@dataclass(frozen=True)
class RoundLeastSquares(Described):
    """Round the integer weights anew, for the least error of their layer's output; needs integers."""

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.model is None:
            return prepared
        moments = prepared.statistics.moments
        round_weights(prepared.model, prepared.graph, prepared.chosen, prepared.ranges, moments, prepared.known)
        done = sum(layer.name in moments for layer in prepared.chosen)
        return prepared.noted(f"weights of {done} layers are rounded for the least error of their output")


def round_weights(
    model: ModelProto,
    graph: Graph,
    layers: Collection[Layer],
    ranges: Mapping[str, TensorRange],
    moments: Moments,
    known: dict[tuple[str, bytes], TensorProto],
) -> None:
    """Round, in place, the integer weights of the quantised ``layers`` of ``model`` anew; ``graph`` has the float ones.

    Scales stay, and no integer leaves the range of those that are there. The rounding of the input (``ranges``) joins
    the moments as noise of variance step^2 / 12. ``known`` remembers what was rounded, for the next variant of
    ``graph``: the search for a budget builds dozens.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        node = graph.node(layer)
        integers, scale = tensors.get(f"{layer.name}_quantized"), tensors.get(f"{layer.name}_scale")
        if layer.name not in moments or integers is None or scale is None:
            continue
        found = ranges[node.input[0]]
        ends = np.array([found.low, found.high]).tobytes()
        key = (layer.name, scale.SerializeToString() + ends)
        if key in known:
            integers.CopyFrom(known[key])
            continue
        nearest = numpy_helper.to_array(integers)
        limit = int(np.abs(nearest.astype(np.int64)).max())
        swap = node.op_type == "ConvTranspose"
        original = graph.weight(layer.name).astype(np.float64)
        rows = _rows(original, swap)
        steps = np.atleast_1d(numpy_helper.to_array(scale)).astype(np.float64)
        outputs = original.shape[1 if swap else 0]
        steps = np.broadcast_to(steps, (outputs,)).repeat(len(rows) // outputs)
        noise = ((found.high - found.low) / 255) ** 2 / 12
        rounded = round_least_squares(rows, steps, moments[layer.name] + noise * np.eye(rows.shape[1]), limit)
        back = _rows_back(rounded, original.shape, swap)
        known[key] = numpy_helper.from_array(back.astype(nearest.dtype), integers.name)
        integers.CopyFrom(known[key])


def round_least_squares(
    rows: NDArray[np.float64], steps: NDArray[np.float64], moment: NDArray[np.float64], limit: int
) -> NDArray[np.int64]:
    """Integers Q (outputs x inputs, within -``limit``..``limit``) that keep (Q * steps - rows) x small.

    ``rows``: float weights, outputs x inputs. ``steps``: the step of each output. ``moment``: E[x x^T], inputs x
    inputs. Inputs are taken loudest first, so that the quiet ones are left to make up for them.
    """
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)]
    damped = damped + max(_DAMPING * float(np.diag(damped).mean()), 1e-30) * np.eye(len(order))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = rows[:, order].copy()
    out = np.zeros(rows.shape, np.int64)
    for column in range(len(order)):
        whole = np.clip(np.round(left[:, column] / steps), -limit, limit)
        out[:, order[column]] = whole
        error = (left[:, column] - whole * steps) / factor[column, column]
        left[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return out


def _attribute(node: NodeProto, name: str, default: list[int]) -> list[int]:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else list(found.ints)


def supported(node: NodeProto, graph: Graph) -> bool:
    """Whether a layer's weights can be rounded so: not grouped, and if transposed, then without overlap."""
    auto = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    kernel = list(graph.initialisers[node.input[1]].dims)[2:]
    if groups_of(node) != 1 or auto not in (b"NOTSET", b"") or len(kernel) != 2:
        return False
    if node.op_type == "Conv":
        return True
    plain = _attribute(node, "strides", [1, 1]) == kernel and not any(_attribute(node, "pads", []))
    return plain and _attribute(node, "dilations", [1, 1]) == [1, 1]


def patches(value: NDArray[np.float32], node: NodeProto, dims: Collection[int]) -> NDArray[np.float32]:
    """Patches N x inputs of a map BxCxHxW at output positions spread evenly over it."""
    if node.op_type == "ConvTranspose":
        pixels = value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
        return pixels[:: max(1, len(pixels) // _PATCHES)]
    kernel = list(dims)[2:]
    top, left, bottom, right = _attribute(node, "pads", [0, 0, 0, 0])
    strides, dilations = _attribute(node, "strides", [1, 1]), _attribute(node, "dilations", [1, 1])
    padded = np.pad(value, ((0, 0), (0, 0), (top, bottom), (left, right)))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    batch, _, height, width = windows.shape[:4]
    numbers = np.arange(0, batch * height * width, max(1, batch * height * width // _PATCHES))
    image, row, column = np.unravel_index(numbers, (batch, height, width))
    return np.ascontiguousarray(windows[image, :, row, column]).reshape(len(numbers), -1)


def _rows(weight: NDArray[np.float64], transposed: bool) -> NDArray[np.float64]:
    """Weights as outputs x inputs; of a transposed convolution every tap of the window is an output of its own."""
    return weight.reshape(len(weight), -1).T.copy() if transposed else weight.reshape(len(weight), -1)


def _rows_back(rows: NDArray[np.int64], shape: tuple[int, ...], transposed: bool) -> NDArray[np.int64]:
    return (rows.T if transposed else rows).reshape(shape)
