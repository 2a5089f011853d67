"""Numbers beside the picture, on their way into a file: from defaults that a graph can be run without, to inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from clusir.export.graph.edit import GraphEdit

__all__ = ["numbers_as_inputs"]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def numbers_as_inputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with each of ``names`` as an input [1] float32, behind its others, in this order. Before, it is an
    initializer that is a graph input too, of any shape and type, or is not there: then nothing reads the input.

    Not every runtime lets such an initializer be given: OpenVINO takes it for a constant, onnxruntime-web does not
    know its name.
    """
    edit = GraphEdit(model)
    graph = edit.model.graph
    nodes: list[onnx.NodeProto] = []
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        held = edit.fresh(f"{tensor.name}/held")
        edit.redirect(tensor.name, held)
        kind = tensor.data_type
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if kind not in _FLOATS:  # the nearest whole number, as of maps
            steps.append(("Round", [], {}))
        if kind != TensorProto.FLOAT:
            steps.append(("Cast", [], {"to": kind}))
        shape = edit.constant(np.array(tensor.dims, np.int64), f"{tensor.name}/shape", np.int64)
        steps.append(("Reshape", [shape], {}))
        source = tensor.name
        for index, (operator, more, attributes) in enumerate(steps):
            output = held if index == len(steps) - 1 else edit.fresh(f"{tensor.name}/{operator}")
            nodes.append(helper.make_node(operator, [source, *more], [output], name=output, **attributes))
            source = output
        graph.initializer.remove(tensor)
    inside = list(graph.node)
    kept = [port for port in graph.input if port.name not in names]
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *inside])
    graph.input.extend([*kept, *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names)])
    return edit.model
