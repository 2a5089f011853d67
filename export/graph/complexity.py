"""What a graph costs: multiply-accumulates, counted on the ONNX file, so that a lowered FFT counts as well."""

from __future__ import annotations

from collections import Counter
from math import prod

import onnx

from clusir.errors import ExportError

__all__ = ["count_macs"]


def count_macs(model: onnx.ModelProto, batch: int = 1) -> Counter[str]:
    """Multiply-accumulates of one run by operator (Conv, ConvTranspose, MatMul, Gemm; the rest is not counted).

    Of an If the dearer branch counts. The graph's size must be static; its batch axis is set to ``batch``. Raises
    ExportError where a shape stays unknown, and where a graph holds loops.
    """
    _refuse_loops(model.graph)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return _count(inferred.graph, {})


def _count(graph: onnx.GraphProto, around: dict[str, list[int]]) -> Counter[str]:
    """The multiply-accumulates of a graph, given the shapes of the values around it."""
    shapes = around | _shapes(graph)
    counts: Counter[str] = Counter()
    for node in graph.node:
        branches = _branches(node)
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            counts[node.op_type] += node_macs(node, shapes)
        elif branches:
            ways = [_count(branch, shapes) for branch in branches]
            counts += ways[max(range(len(ways)), key=lambda way: sum(ways[way].values()))]
    return counts


def _branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]


def _refuse_loops(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for inner in _branches(node):
            if node.op_type != "If":
                raise ExportError(f"how often {node.op_type} {node.name} runs is unknown; count on a graph without one")
            _refuse_loops(inner)


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return shapes | {
        node.output[0]: list(attribute.t.dims)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def node_macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """Multiply-accumulates of one operator."""
    names = [node.input[0], node.input[1], node.output[0]]
    unknown = [name for name in names if not shapes.get(name) or 0 in shapes[name]]
    if unknown:
        raise ExportError(f"the shape of {unknown[0]} is not known; count on a static graph")
    first, second, out = (shapes[name] for name in names)
    if node.op_type == "Conv":
        return prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    inner = first[-1]
    for attribute in node.attribute:
        if attribute.name == "transA" and attribute.i:
            inner = first[0]
    return prod(out) * inner
