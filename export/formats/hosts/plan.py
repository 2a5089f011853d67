"""A graph for a writer in another environment: its nodes as JSON, its weights beside them. No onnx has to be there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from clusir.export.formats.hosts.child import Refused
from clusir.export.graph.index import inferred
from clusir.export.passes.coalesce import coalesced_axes

__all__ = ["write_plan"]


def write_plan(model: ModelProto, folder: Path, steps: Mapping[str, NDArray[np.float32]] | None = None) -> None:
    """``plan.json`` and ``weights.npz``. A Transpose comes with the ``coalesced`` shape and order of its axes. Of
    weights that are to be integers, the ``steps`` are stored as ``NAME:step``. Raises Refused where a shape is not
    known."""
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights |= {f"{name}:step": step for name, step in (steps or {}).items()}
    shapes: dict[str, list[int]] = {}
    notes = inferred(model)
    for value in (*notes.value_info, *graph.output):
        shape = value.type.tensor_type.shape
        shapes[value.name] = [dim.dim_value for dim in shape.dim]
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        if unknown := [name for name in node.output if name and math.prod(shapes.get(name, [0])) == 0]:
            raise Refused(f"the shape of {unknown[0]} is not known")
        attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
        if node.op_type == "Transpose":
            turned = shapes[node.output[0]]
            order = attributes.get("perm", list(range(len(turned)))[::-1])
            given = [turned[order.index(axis)] for axis in range(len(order))]
            attributes["coalesced"] = coalesced_axes(given, order)
        nodes.append({
            "op": node.op_type, "inputs": list(node.input), "outputs": list(node.output),
            "shapes": [shapes[name] for name in node.output if name], "attributes": attributes,
        })  # fmt: skip
    shape = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    plan = {"input": graph.input[0].name, "output": graph.output[0].name, "shape": shape, "nodes": nodes}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)


def _plain(value: Any) -> Any:
    """An attribute as JSON has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return value
    raise Refused("a node has an attribute that is a tensor or a graph")
