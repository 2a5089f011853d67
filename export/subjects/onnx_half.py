"""Graphs that compute in float16, or take pictures of float64, as the same graphs in float32.

Passes, runtimes' kernels and norms of flat maps are written for float32; the weights are the same numbers there, and
what comes out is more exact. Files of lower precision are made of it as of any other (``--precision``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

__all__ = ["in_float32", "without_doubles"]

_HALF, _SINGLE, _DOUBLE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
_TYPES = ("to", "dtype")  # attributes that name a type


def in_float32(model: ModelProto) -> tuple[ModelProto, bool]:
    """(the model with every float16 number and type as float32, whether there was one); the model itself where not."""
    made = ModelProto()
    made.CopyFrom(model)
    return (made, True) if _widen(made.graph, _HALF) else (model, False)


def without_doubles(model: ModelProto) -> ModelProto:
    """The model with every float64 number and type as float32, where a picture or another input is float64: ONNX
    Runtime has few kernels for such. The model itself where none is: what counts sizes in float64 stays exact."""
    if not any(value.type.tensor_type.elem_type == _DOUBLE for value in model.graph.input):
        return model
    made = ModelProto()
    made.CopyFrom(model)
    _widen(made.graph, _DOUBLE)
    return made


def _widen(graph: GraphProto, kind: int) -> bool:
    changed = False
    for tensor in graph.initializer:
        changed |= _widen_tensor(tensor, kind)
    for node in graph.node:
        for attribute in node.attribute:
            changed |= _widen_attribute(attribute, kind)
    return _widen_values((*graph.input, *graph.output, *graph.value_info), kind) or changed


def _widen_attribute(attribute: AttributeProto, kind: int) -> bool:
    if attribute.type == AttributeProto.INT and attribute.name in _TYPES and attribute.i == kind:
        attribute.i = _SINGLE
        return True
    changed = [_widen_tensor(tensor, kind) for tensor in (attribute.t, *attribute.tensors) if tensor.data_type == kind]
    inner = [attribute.g] if attribute.HasField("g") else []
    return any([*changed, *(_widen(graph, kind) for graph in (*inner, *attribute.graphs))])


def _widen_tensor(tensor: TensorProto, kind: int) -> bool:
    if tensor.data_type != kind:
        return False
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return True


def _widen_values(values: Iterable[ValueInfoProto], kind: int) -> bool:
    found = [value for value in values if value.type.tensor_type.elem_type == kind]
    for value in found:
        value.type.tensor_type.elem_type = _SINGLE
    return bool(found)
