"""Room for the names that onnxruntime.quantization gives: it puts its own beside a graph's without looking.

A scale of ``w`` is called ``w_scale`` there. A network that has a weight ``w`` and a constant ``w_scale`` of its own
would compute with either of the two, so such a constant, or value, gets another name first.
"""

from __future__ import annotations

from onnx import ModelProto

from clusir.errors import ExportError
from clusir.export.graph.index import Names

__all__ = ["cleared"]

_SUFFIXES = (
    *("_scale", "_zero_point", "_quantized", "_quantized_scale", "_quantized_zero_point"),
    *("_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output", "_convert"),
)


def cleared(model: ModelProto) -> ModelProto:
    """The same model, without subgraphs, in which no value has the name of another one with such an ending; a copy
    where one had. Raises ExportError where an input or output has: its name belongs to whoever runs the file."""
    graph = model.graph
    ports = {value.name for value in (*graph.input, *graph.output)}
    every = (
        ports | {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    )
    taken = sorted(name + suffix for name in every - {""} for suffix in _SUFFIXES if name + suffix in every)
    if not taken:
        return model
    if fixed := next((name for name in taken if name in ports), ""):
        raise ExportError(f"{fixed}, an input or output, has a name that quantising needs; export it under another")
    out = ModelProto()
    out.CopyFrom(model)
    names = Names(out.graph)
    renamed = {name: names.fresh(f"{name}_own") for name in dict.fromkeys(taken)}
    for named in (*out.graph.initializer, *out.graph.value_info):
        named.name = renamed.get(named.name, named.name)
    for node in out.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    return out
