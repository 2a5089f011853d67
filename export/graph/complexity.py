"""What a graph costs: multiply-accumulates, counted on the ONNX file, so that a lowered FFT counts as well."""

from __future__ import annotations

from collections import Counter
from math import prod

import onnx

from clusir.errors import ExportError

__all__ = ["count_macs"]


def count_macs(model: onnx.ModelProto, batch: int = 1) -> Counter[str]:
    """Multiply-accumulates of one run by operator (Conv, ConvTranspose, MatMul, Gemm; the rest is not counted).

    The graph's size must be static; its batch axis is set to ``batch``. Raises ExportError where a shape stays unknown.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {
        node.output[0]: list(attribute.t.dims)
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    counts: Counter[str] = Counter()
    for node in inferred.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            counts[node.op_type] += node_macs(node, shapes)
    return counts


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
