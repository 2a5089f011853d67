"""Equalisation: the hidden channels between two convolutions are scaled to like ranges, which changes nothing in float.

relu(s x) = s relu(x) for s > 0, so the first convolution's channel c may be divided by s_c and the second multiplied,
with a gain per channel between them or not (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019). A hidden map has one scale for all its channels: without this the loudest channel sets it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from clusir.export.quantize.layers import Graph, groups_of
from clusir.export.quantize.prepared import Described, Prepared
from clusir.rounding import channel_scale

__all__ = ["Equalise", "hidden_maps"]


class _Pair(NamedTuple):
    """expand -> ReLU (-> Mul by a gain) -> project; ``relu`` is the ReLU's result, ``hidden`` what project reads."""

    expand: NodeProto
    relu: str
    hidden: str
    project: NodeProto


@dataclass(frozen=True)
class Equalise(Described):
    """Scale the hidden channels between two convolutions to like ranges; the graph computes the same."""

    def apply(self, prepared: Prepared) -> Prepared:
        graph, statistics = prepared.graph, prepared.statistics
        model = ModelProto()
        model.CopyFrom(graph.model)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        done = 0
        for pair in _pairs(graph):
            if pair.hidden not in statistics.maps:
                continue
            # From the copy: in a chain of pairs the second convolution of one is the first of the next.
            expand, project = (numpy_helper.to_array(tensors[node.input[1]]) for node in (pair.expand, pair.project))
            bias = numpy_helper.to_array(tensors[pair.expand.input[2]])
            scale = channel_scale(statistics.maps[pair.hidden].peak, np.abs(project).max(axis=(0, 2, 3)))
            if scale is None:
                continue
            changed = {
                pair.expand.input[1]: expand / scale[:, None, None, None],
                pair.expand.input[2]: bias / scale,
                pair.project.input[1]: project * scale[None, :, None, None],
            }
            for name, value in changed.items():
                tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
            names = {pair.expand.output[0], pair.relu, pair.hidden}
            maps = {n: statistics.maps[n].divided(scale) for n in names if n in statistics.maps}
            statistics = statistics.with_maps(maps).with_inputs_divided({pair.project.input[1]: scale})
            done += 1
        if not done:
            return prepared.noted("no hidden channels between two convolutions were found to equalise")
        changed_graph = replace(prepared.with_model(model), statistics=statistics)
        return changed_graph.noted(f"hidden channels of {done} pairs of convolutions are scaled to like ranges")


def hidden_maps(graph: Graph) -> set[str]:
    """The maps whose channels :class:`Equalise` scales."""
    return {pair.hidden for pair in _pairs(graph)}


def _pairs(graph: Graph) -> list[_Pair]:
    found = []
    uses: dict[str, int] = {}
    for node in graph.model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for node in graph.convolutions():
        own = len(node.input) > 2 and node.input[2] in graph.initialisers and uses[node.input[2]] == 1
        relu = _only_reader(graph, node.output[0])
        if not own or not _plain(graph, node) or uses[node.input[1]] != 1 or relu is None or relu.op_type != "Relu":
            continue
        hidden, reader = relu.output[0], _only_reader(graph, relu.output[0])
        if reader is not None and reader.op_type == "Mul" and _is_gain(graph, reader, hidden):
            hidden, reader = reader.output[0], _only_reader(graph, reader.output[0])
        if reader is not None and _plain(graph, reader) and uses[reader.input[1]] == 1 and reader.input[0] == hidden:
            found.append(_Pair(node, relu.output[0], hidden, reader))
    return found


def _plain(graph: Graph, node: NodeProto) -> bool:
    """A convolution with constant weights in one group."""
    groups = groups_of(node)
    return node.op_type == "Conv" and groups == 1 and node.input[1] in graph.initialisers


def _only_reader(graph: Graph, name: str) -> NodeProto | None:
    readers = graph.consumers.get(name, [])
    return readers[0] if len(readers) == 1 and name not in graph.outputs else None


def _is_gain(graph: Graph, node: NodeProto, hidden: str) -> bool:
    """Whether the other factor has one value a channel: B x C x 1 x 1."""
    other = next((name for name in node.input if name != hidden), hidden)
    shape = graph.shapes.get(other, ())
    return other != hidden and len(shape) == 4 and shape[2:] == (1, 1)
