"""Smaller files: what QDQ form repeats is stored once, constants that stay float are stored as float16 or in 8 bits.

The way back to float32 is folded when a runtime loads the file; all arithmetic stays float32. The rounding of float16
(a relative 2^-11) lies far below that of the 8-bit weights around it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clusir.export.graph.index import Names
from clusir.export.quantize.choice import LITTLE
from clusir.export.quantize.layers import FIRST
from clusir.export.quantize.prepared import Described, Prepared

__all__ = ["Compact", "share_constants", "store_as_float16", "store_as_int8"]

# A cast costs about a hundred bytes itself.
_WORTHWHILE = 128
_LIMIT = 65504.0


@dataclass(frozen=True)
class Compact(Described):
    """Store what is repeated once, sparse layers' weights in 8 bits and other constants as float16; needs integers."""

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.model is not None:
            share_constants(prepared.model)
            store_as_int8(prepared.model, {x.name for x in prepared.layers if x.keep == LITTLE})
            # Rounding the weights that read the picture to float16 moves the brightness of dark ones by 0.001.
            store_as_float16(prepared.model, {x.name for x in prepared.layers if x.keep == FIRST})
        return prepared


def share_constants(model: ModelProto) -> int:
    """Let equal zero points and scales be one constant, and drop the long names of Q and DQ nodes; in place.

    Returns how many constants were dropped.
    """
    parameters = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    names = Names(model.graph)
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    left = []
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            if key in first:
                renamed[tensor.name] = first[key]
                continue
            first[key] = renamed[tensor.name] = names.fresh(f"q{len(first)}")
            tensor.name = first[key]
        left.append(tensor)
    dropped = len(model.graph.initializer) - len(left)
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return dropped


def store_as_int8(model: ModelProto, names: Collection[str]) -> int:
    """Store the weights ``names`` (float32, output channel first) as int8 with a scale per output channel, in place.

    A cast and a multiplication, not DequantizeLinear: runtimes fold the former into a constant, and leave the latter
    standing in front of the convolution. Returns how many were changed.
    """
    taken, nodes = Names(model.graph), list[NodeProto]()
    scales = []
    for tensor in model.graph.initializer:
        if tensor.name not in names or tensor.data_type != TensorProto.FLOAT:
            continue
        name, value = tensor.name, numpy_helper.to_array(tensor)
        largest = np.abs(value).reshape(len(value), -1).max(axis=1)
        step = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(127)
        step = step.reshape(-1, *[1] * (value.ndim - 1))
        if value.size < _WORTHWHILE or step.size * 4 > value.size:
            continue
        integer, cast, factor = (taken.fresh(f"{name}.{what}") for what in ("int", "cast", "step"))
        tensor.CopyFrom(numpy_helper.from_array(np.round(value / step).astype(np.int8), integer))
        scales.append(numpy_helper.from_array(step, factor))
        nodes.append(helper.make_node("Cast", [integer], [cast], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [cast, factor], [name]))
    model.graph.initializer.extend(scales)
    former = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *former])
    return len(scales)


def store_as_float16(model: ModelProto, keep: Collection[str] = ()) -> int:
    """Change ``model`` in place and return how many constants were changed. Scales of QDQ nodes keep their type, and so
    do the constants named in ``keep``, those that float16 cannot hold, and those that a graph input or output names."""
    kept = {v.name for v in (*model.graph.input, *model.graph.output)} | set(keep)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            kept |= set(node.input)
    names, casts = Names(model.graph), list[NodeProto]()
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in kept:
            continue
        value = numpy_helper.to_array(tensor)
        if value.size < _WORTHWHILE or not np.abs(value).max() < _LIMIT:
            continue
        name, half = tensor.name, names.fresh(f"{tensor.name}.half")
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), half))
        cast = names.fresh(f"{name}.cast")
        casts.append(helper.make_node("Cast", [half], [name], name=cast, to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return len(casts)
