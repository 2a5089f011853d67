"""Outputs that float operations read get a scale per channel: the convolution computes y / s in integers, s joins in
float.

A quantised map has one scale, and a loud channel sets it for the quiet ones. Dividing output channel c of the weights
and of the bias by s_c costs nothing (weights have a scale per output channel anyway), and one multiplication puts it
back before the sum. Left out where a ReLU or an integer layer reads the map: there equalisation does the same for free.

One zero point serves all channels as well: where some lie above zero and others below, half of the 256 levels or more
hold nothing. So what lies far from zero is centred: the middle of a channel's range leaves with the bias, which costs
nothing, and joins in float again, which costs an addition.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph.index import Names
from clusir.export.quantize.layers import Graph, Layer, groups_of
from clusir.export.quantize.prepared import Described, Prepared
from clusir.export.quantize.statistics import MapStatistics
from clusir.rounding import ends_of, evened

__all__ = ["ScaleOutputs", "Scales", "scale_outputs"]

Scales = Mapping[str, NDArray[np.float64]]


# Of what a channel spans around its middle: on another picture it may lie elsewhere.
_NARROWEST = 0.25
# Below this share of the rounding error the addition in float is worth it.
_WORTH_ADDING = 0.6


@dataclass(frozen=True)
class ScaleOutputs(Described):
    """Give each map that only float operations read a scale per channel (see ``clusir.rounding.even_scale``), and, with
    ``centre``, channels around zero where that leaves little of the rounding error."""

    centre: bool = True

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.sums:
            raise ExportError("ScaleOutputs and AddResiduals exclude each other: leave one of them out of the steps")
        graph, maps = prepared.graph, prepared.statistics.maps
        nodes = {x.name: node for x in prepared.chosen if (node := _scalable(graph, x, prepared.chosen)) is not None}
        found = {
            node.output[0]: _evened(maps[node.output[0]], self.centre and len(node.input) > 2 and bool(node.input[2]))
            for node in nodes.values()
        }
        scales = {name: found[node.output[0]].scale for name, node in nodes.items()}
        shifts = {name: shift for name, node in nodes.items() if (shift := found[node.output[0]].shift).any()}
        model, even = scale_outputs(graph.model, scales, shifts)
        statistics = prepared.statistics.with_maps({even[result]: made.statistics for result, made in found.items()})
        scaled = replace(prepared.with_model(model), statistics=statistics)
        told = f", {len(shifts)} of them around the middle of each" if shifts else ""
        return scaled.noted(f"{len(scales)} layers write maps with a scale per channel{told}")


@dataclass(frozen=True)
class _Evened:
    """What is taken from each channel, and what it is divided by then; the statistics of what is left."""

    shift: NDArray[np.float64]
    scale: NDArray[np.float64]
    statistics: MapStatistics

    @property
    def error(self) -> float:
        """Of rounding, relative to others of the same map."""
        span = self.statistics.range("mse")
        return float(np.linalg.norm(self.scale)) * (span.high - span.low)


def _evened(seen: MapStatistics, centre: bool) -> _Evened:
    plain = _Evened(np.zeros_like(seen.mean), seen.even, seen.divided(seen.even))
    if not centre:
        return plain
    moved = seen.shifted(seen.centre)
    ends = np.maximum(ends_of(moved.counts, moved.peak), _NARROWEST * ends_of(seen.counts, seen.peak))
    centred = _Evened(seen.centre, evened(ends), moved.divided(evened(ends)))
    return centred if centred.error < _WORTH_ADDING * plain.error else plain


def _scalable(graph: Graph, layer: Layer, layers: Collection[Layer]) -> NodeProto | None:
    """The layer's node if its output is a map inside the graph that only float operations read, and its weights and
    bias are its own."""
    node = graph.node(layer)
    readers = graph.consumers.get(node.output[0], [])
    integer = {other.node for other in layers}
    if not readers or node.output[0] in graph.outputs or len(graph.shapes.get(node.output[0], ())) != 4:
        return None
    if any(reader.op_type == "Relu" or reader.name in integer for reader in readers):
        return None
    groups = groups_of(node)
    own = all(name in graph.initialisers and len(graph.consumers[name]) == 1 for name in node.input[1:] if name)
    return node if own and (groups == 1 or node.op_type == "Conv") else None


def scale_outputs(model: ModelProto, scales: Scales, shifts: Scales) -> tuple[ModelProto, dict[str, str]]:
    """A copy of ``model`` that computes the same, with the layers named in ``scales`` and ``shifts`` (weight name to
    scale, to shift per output channel; a shifted layer has a bias) scaled as :class:`ScaleOutputs` says, and what the
    convolutions' own results are called in it, by the name of what they were: ``<output>.even``, where that is free."""
    out = ModelProto()
    out.CopyFrom(model)
    even: dict[str, str] = {}
    if not scales:
        return out, even
    names = Names(out.graph)
    tensors = {tensor.name: tensor for tensor in out.graph.initializer}
    nodes: list[NodeProto] = []
    for node in out.graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in scales:
            continue
        scale = scales[node.input[1]]
        axis = 0 if node.op_type == "Conv" else 1
        for name, where in zip(node.input[1:], (axis, 0), strict=False):
            value = numpy_helper.to_array(tensors[name])
            if name != node.input[1] and node.input[1] in shifts:
                value = value - shifts[node.input[1]]
            shape = [1] * value.ndim
            shape[where] = len(scale)
            tensors[name].CopyFrom(numpy_helper.from_array((value / scale.reshape(shape)).astype(np.float32), name))
        result = node.output[0]
        node.output[0] = even[result] = names.fresh(f"{result}.even")
        shift = shifts.get(node.input[1])
        spread = result if shift is None else names.fresh(f"{result}.spread")
        nodes.append(_with(out, names, "Mul", node.output[0], scale, (f"{result}.scale", spread)))
        if shift is not None:
            nodes.append(_with(out, names, "Add", spread, shift, (f"{result}.middle", result)))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:]
    out.graph.node.extend(copies)
    return out, even


def _with(
    out: ModelProto, names: Names, op: str, source: str, numbers: NDArray[np.float64], called: tuple[str, str]
) -> NodeProto:
    """A node that joins a number per channel to a map; ``called``: the constant, where that is free, and the result."""
    constant = names.fresh(called[0])
    value = numbers.astype(np.float32).reshape(1, -1, 1, 1)
    out.graph.initializer.append(numpy_helper.from_array(value, constant))
    return helper.make_node(op, [source, constant], [called[1]], name=constant)
