"""Graphs that compute in float16, as the same graphs in float32.

Passes, runtimes' kernels and norms of flat maps are written for float32; the weights are the same numbers there, and
what comes out is more exact. Files of lower precision are made of it as of any other (``--precision``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

__all__ = ["in_float32"]

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
_TYPES = ("to", "dtype")  # attributes that name a type


def in_float32(model: ModelProto) -> tuple[ModelProto, bool]:
    """(the model with every float16 number and type as float32, whether there was one); the model itself where not."""
    made = ModelProto()
    made.CopyFrom(model)
    changed = _widen(made.graph)
    return (made, True) if changed else (model, False)


def _widen(graph: GraphProto) -> bool:
    changed = False
    for tensor in graph.initializer:
        changed |= _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            changed |= _widen_attribute(attribute)
    return _widen_values((*graph.input, *graph.output, *graph.value_info)) or changed


def _widen_attribute(attribute: AttributeProto) -> bool:
    if attribute.type == AttributeProto.INT and attribute.name in _TYPES and attribute.i == _HALF:
        attribute.i = _SINGLE
        return True
    changed = [_widen_tensor(tensor) for tensor in (attribute.t, *attribute.tensors) if tensor.data_type == _HALF]
    inner = [attribute.g] if attribute.HasField("g") else []
    return any([*changed, *(_widen(graph) for graph in (*inner, *attribute.graphs))])


def _widen_tensor(tensor: TensorProto) -> bool:
    if tensor.data_type != _HALF:
        return False
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return True


def _widen_values(values: Iterable[ValueInfoProto]) -> bool:
    half = [value for value in values if value.type.tensor_type.elem_type == _HALF]
    for value in half:
        value.type.tensor_type.elem_type = _SINGLE
    return bool(half)
