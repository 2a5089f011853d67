"""Outputs that a float sum reads get a scale per channel: the convolution computes y / s in integers, s joins in float.

A quantised map has one scale, and a loud channel sets it for the quiet ones. Dividing output channel c of the weights
and of the bias by s_c costs nothing (weights have a scale per output channel anyway), and one multiplication puts it
back before the sum. Left out where a ReLU or an integer layer reads the map: there equalisation does the same for free.
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

__all__ = ["ScaleOutputs", "Scales", "scale_outputs"]

Scales = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ScaleOutputs(Described):
    """Give each map that only float operations read a scale per channel (see ``clusir.rounding.even_scale``)."""

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.sums:
            raise ExportError("ScaleOutputs and AddResiduals exclude each other: leave one of them out of the steps")
        graph, maps = prepared.graph, prepared.statistics.maps
        nodes = {x.name: node for x in prepared.chosen if (node := _scalable(graph, x, prepared.chosen)) is not None}
        scales = {name: maps[node.output[0]].even for name, node in nodes.items()}
        model, even = scale_outputs(graph.model, scales)
        read = {nodes[name].output[0]: scale for name, scale in scales.items()}
        found = {even[result]: maps[result].divided(scale) for result, scale in read.items()}
        scaled = replace(prepared.with_model(model), statistics=prepared.statistics.with_maps(found))
        return scaled.noted(f"{len(scales)} layers write maps with a scale per channel")


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


def scale_outputs(model: ModelProto, scales: Scales) -> tuple[ModelProto, dict[str, str]]:
    """A copy of ``model`` that computes the same, with the layers named in ``scales`` (weight name to scale per output
    channel) scaled as :class:`ScaleOutputs` says, and what the convolutions' own results are called in it, by the name
    of what they were: ``<output>.even``, where that is free."""
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
            shape = [1] * value.ndim
            shape[where] = len(scale)
            tensors[name].CopyFrom(numpy_helper.from_array((value / scale.reshape(shape)).astype(np.float32), name))
        result = node.output[0]
        node.output[0] = even[result] = names.fresh(f"{result}.even")
        constant = names.fresh(f"{result}.scale")
        out.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32).reshape(1, -1, 1, 1), constant))
        nodes.append(helper.make_node("Mul", [node.output[0], constant], [result], name=constant))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:]
    out.graph.node.extend(copies)
    return out, even
