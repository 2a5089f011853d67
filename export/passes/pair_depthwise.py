"""PairDepthwise: neighbouring depthwise convolutions of too few channels as one of the larger kernel.

Runtimes compute channels in blocks (16 with AVX-512): a depthwise convolution of 8 channels costs what one of 16 does,
and its output leaves the blocked layout to be joined with the others. Routed experts of one level are such convolutions
side by side, between a Split and a Concat. The smaller kernel, with zeros around, goes along with the larger one where
that fills the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.probe import LinearGraph

__all__ = ["PairDepthwise"]

_BLOCK = 16


@dataclass(frozen=True)
class _Lane:
    """Channels that a depthwise convolution takes from a Split to a Concat; ``kernel`` [channels, 1, k, k]."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]

    def cost(self) -> int:
        """Multiply-adds for each pixel, counted in whole blocks of channels."""
        channels, _, rows, columns = self.kernel.shape
        return -(-channels // _BLOCK) * _BLOCK * rows * columns

    def with_next(self, other: _Lane) -> _Lane:
        size = max(self.kernel.shape[2], other.kernel.shape[2])

        def padded(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
            edge = (size - kernel.shape[2]) // 2
            return np.pad(kernel, ((0, 0), (0, 0), (edge, edge), (edge, edge)))

        kernels = np.concatenate([padded(self.kernel), padded(other.kernel)])
        return _Lane(kernels, np.concatenate([self.bias, other.bias]))


class PairDepthwise(GraphPass):
    """Split -> depthwise convolutions -> Concat, with fewer and fuller convolutions."""

    name = "PairDepthwise"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "Concat"]:
            linear = edit.linear()
            found = _lanes(linear, linear.producer[value])
            if found is None:
                continue
            split, lanes = found
            paired = _pair(lanes)
            if len(paired) == len(lanes):
                continue
            sizes = edit.constant([len(lane.kernel) for lane in paired], f"{value}/sizes", np.int64)
            parts = [edit.fresh(f"{value}/lane{k}") for k in range(len(paired))]
            name = edit.fresh(f"{value}/split")
            edit.model.graph.node.append(helper.make_node("Split", [split.input[0], sizes], parts, name=name, axis=1))
            ends = []
            for part, lane in zip(parts, paired, strict=True):
                inputs = [part, edit.constant(lane.kernel, f"{part}/kernel")]
                if lane.bias.any():
                    inputs.append(edit.constant(lane.bias, f"{part}/bias"))
                pad = lane.kernel.shape[2] // 2
                ends.append(edit.node("Conv", inputs, f"{part}/conv", group=len(lane.kernel), pads=[pad] * 4))
            joined = ends[0] if len(ends) == 1 else edit.node("Concat", ends, f"{value}/joined", axis=1)
            edit.redirect(value, joined)
            edit.drop_unused()
            notes.append(f"{value}: {len(paired)} depthwise convolutions instead of {len(lanes)}")
        if not notes:
            return PassResult(
                model, False, ("no Split - depthwise Conv - Concat with fewer than 16 channels per Conv",)
            )
        return PassResult(edit.model, True, tuple(notes))


def _lanes(linear: LinearGraph, concat: onnx.NodeProto) -> tuple[onnx.NodeProto, list[_Lane]] | None:
    """The Split and the depthwise convolutions between it and ``concat``, in one order and nothing beside them."""
    if next((a.i for a in concat.attribute if a.name == "axis"), 0) != 1:
        return None
    convs = [linear.producer.get(i) for i in concat.input]
    lanes: list[_Lane] = []
    parts: list[str] = []
    for conv in convs:
        lane = None if conv is None else _lane(linear, conv)
        if conv is None or lane is None or len(linear.users[conv.output[0]]) != 1 or conv.output[0] in linear.outputs:
            return None
        lanes.append(lane)
        parts.append(conv.input[0])
    split = linear.producer.get(parts[0])
    if split is None or split.op_type != "Split" or list(split.output) != parts:
        return None
    if next((a.i for a in split.attribute if a.name == "axis"), 0) != 1:
        return None
    return (split, lanes) if all(len(linear.users[p]) == 1 and p not in linear.outputs for p in parts) else None


def _lane(linear: LinearGraph, conv: onnx.NodeProto) -> _Lane | None:
    """A depthwise convolution with an odd square kernel that keeps the size; None for any other node."""
    if conv.op_type != "Conv" or any(i not in linear.constants for i in conv.input[1:]):
        return None
    if not linear.is_float(conv.input[0]):
        return None
    kernel = linear.constants[conv.input[1]].astype(np.float64)
    values = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    size = kernel.shape[-1]
    keeps = (
        kernel.ndim == 4
        and kernel.shape[1:] == (1, size, size)
        and size % 2 == 1
        and values.get("group", 1) == len(kernel)
        and list(values.get("pads", [0] * 4)) == [size // 2] * 4
        and all(v == 1 for name in ("strides", "dilations") for v in values.get(name, []))
        and values.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
    bias = linear.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(kernel))
    return _Lane(kernel, bias.astype(np.float64)) if keeps else None


def _pair(lanes: list[_Lane]) -> list[_Lane]:
    """Neighbours joined while the cost in blocks does not grow, the best pair first."""
    lanes = list(lanes)
    while len(lanes) > 1:
        joined = [a.with_next(b) for a, b in pairwise(lanes)]
        saved = [a.cost() + b.cost() - c.cost() for (a, b), c in zip(pairwise(lanes), joined, strict=True)]
        best = int(np.argmax(saved))
        if saved[best] < 0:
            break
        lanes[best : best + 2] = [joined[best]]
    return lanes
