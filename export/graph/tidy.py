"""What other tools write in ways that few readers expect, as everybody writes it; and names put out of the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

__all__ = ["graphs_of", "prefixed", "tidied"]

_LEAST_IR_VERSION = 8
_STANDARD = "ai.onnx"  # the written name of the domain of standard operators, which is empty elsewhere


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes (the branches of an ``If``, the bodies of ``Loop`` and ``Scan``)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def tidied(model: ModelProto) -> ModelProto:
    """A copy that computes the same: standard operators under their empty domain, sparse constants whole, constants no
    inputs, lengths below zero open, no node of another's name."""
    made = ModelProto()
    made.CopyFrom(model)
    for opset in made.opset_import:
        opset.domain = _domain(opset.domain)
    for graph in graphs_of(made.graph):
        for node in graph.node:
            node.domain = _domain(node.domain)
        graph.initializer.extend(map(_dense, graph.sparse_initializer))
        del graph.sparse_initializer[:]
        constants = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.input if value.name not in constants]
        del graph.input[:]
        graph.input.extend(kept)
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.Clear()
    seen: set[str] = set()
    for node in _nodes(made):
        if node.name in seen:
            node.ClearField("name")
        seen.add(node.name)
    made.ir_version = max(made.ir_version, _LEAST_IR_VERSION)  # before 4, every constant had to be an input
    return made


def prefixed(model: ModelProto, prefix: str) -> ModelProto:
    """A copy with ``prefix`` before every name of a tensor or a node, inside inner graphs too. What reads a name stays
    with what wrote it: every name changes alike."""
    made = ModelProto()
    made.CopyFrom(model)
    for graph in graphs_of(made.graph):
        for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            named.name = prefix + named.name
        for sparse in graph.sparse_initializer:
            sparse.values.name = prefix + sparse.values.name
        for node in graph.node:
            node.name = node.name and prefix + node.name
            for names in (node.input, node.output):
                names[:] = [name and prefix + name for name in names]  # an empty one: not given
        del graph.quantization_annotation[:]
    return made


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in graphs_of(model.graph):
        yield from graph.node


def _domain(name: str) -> str:
    return "" if name == _STANDARD else name


def _dense(tensor: SparseTensorProto) -> TensorProto:
    values, places = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    whole = np.zeros(tuple(tensor.dims), values.dtype)
    whole[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, whole.shape)] = values
    return numpy_helper.from_array(whole, tensor.values.name)
