"""Inputs that come from a float sum get a scale per channel: x / s is rounded, and the weights read it times s.

A residual stream has a few loud channels, and one step size for all of them buries the rest: of the error of a
quantised 3x3 convolution of ``tiny`` nine tenths came from there. Dividing channel c by s_c before the map is rounded
is one multiplication in float; multiplying input channel c of the weights by s_c costs nothing. This is SmoothQuant's
balance (Xiao et al., arXiv 2211.10438) with all of the spread moved to the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from clusir.export.graph.index import Names
from clusir.export.quantize.layers import Graph, Layer, groups_of
from clusir.export.quantize.outputs import Scales
from clusir.export.quantize.prepared import Described, Prepared
from clusir.rounding import WORTH, error_left

__all__ = ["ScaleInputs", "scale_inputs"]


@dataclass(frozen=True)
class ScaleInputs(Described):
    """Let layers that read a float sum read it with a scale per channel, where they gain by it.

    Layers that read one tensor get the same scale.
    """

    def apply(self, prepared: Prepared) -> Prepared:
        graph, maps = prepared.graph, prepared.statistics.maps
        nodes = {x.name: node for x in prepared.chosen if (node := _scalable(graph, x, prepared.chosen)) is not None}
        scales = {name: maps[node.input[0]].even for name, node in nodes.items()}
        scales = {name: scale for name, scale in scales.items() if _error_left(graph, nodes[name], scale) < WORTH}
        model, even = scale_inputs(graph.model, scales)
        read = {nodes[name].input[0]: scale for name, scale in scales.items()}
        found = {even[source]: maps[source].divided(scale) for source, scale in read.items()}
        statistics = prepared.statistics.with_maps(found).with_inputs_divided(scales)
        scaled = replace(prepared.with_model(model), statistics=statistics)
        return scaled.noted(f"{len(scales)} layers read maps with a scale per channel")


def _error_left(graph: Graph, node: NodeProto, scale: NDArray[np.float64]) -> float:
    weight = graph.weight(node.input[1]).astype(np.float64)
    return error_left((weight**2).sum(axis=(0, 2, 3) if node.op_type == "Conv" else (1, 2, 3)), scale)


def _scalable(graph: Graph, layer: Layer, layers: Collection[Layer]) -> NodeProto | None:
    """The layer's node if its input is a float map inside the graph and its weights are its own.

    Behind a ReLU of an integer layer equalisation does the same for nothing.
    """
    node = graph.node(layer)
    source = graph.producer.get(node.input[0])
    groups = groups_of(node)
    if source is None or source.op_type == "Relu" or source.name in {other.node for other in layers}:
        return None
    own = node.input[1] in graph.initialisers and len(graph.consumers[node.input[1]]) == 1
    return node if own and groups == 1 and len(graph.shapes.get(node.input[0], ())) == 4 else None


def scale_inputs(model: ModelProto, scales: Scales) -> tuple[ModelProto, dict[str, str]]:
    """A copy of ``model`` that computes the same, with the layers named in ``scales`` (weight name to scale per input
    channel) reading their input divided by the scale, and what that is called, by the name of the input:
    ``<input>.even``, where that is free."""
    out = ModelProto()
    out.CopyFrom(model)
    even: dict[str, str] = {}
    if not scales:
        return out, even
    names = Names(out.graph)
    tensors = {tensor.name: tensor for tensor in out.graph.initializer}
    nodes: list[NodeProto] = []
    for node in out.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in scales:
            scale = scales[node.input[1]]
            value = numpy_helper.to_array(tensors[node.input[1]])
            shape = (1, -1, 1, 1) if node.op_type == "Conv" else (-1, 1, 1, 1)
            scaled = (value * scale.reshape(shape)).astype(np.float32)
            tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scaled, node.input[1]))
            source = node.input[0]
            if source not in even:
                even[source], inverse = names.fresh(f"{source}.even"), names.fresh(f"{source}.inverse")
                factor = (1 / scale).astype(np.float32).reshape(1, -1, 1, 1)
                out.graph.initializer.append(numpy_helper.from_array(factor, inverse))
                nodes.append(helper.make_node("Mul", [source, inverse], [even[source]], name=even[source]))
            node.input[0] = even[source]
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:]
    out.graph.node.extend(copies)
    return out, even
