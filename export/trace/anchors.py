"""Sizes inside a graph, counted from the input's size wherever that is known.

A tracer asks whichever tensor is at hand for its height. OpenVINO 2026 takes tensors of equal size for interchangeable
sources of it and can choose one that is computed later: the graph then does nothing at all, without an error. Counted
from the input, as ``height // 2``, there is only one source, and the graph needs no large tensor to know a size.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

__all__ = ["anchor_sizes", "entry_sizes"]

_MULTIPLE = re.compile(r"(?:(\d+)\*)?(\w+)")


def entry_sizes(program: torch.export.ExportedProgram) -> dict[str, tuple[int, int]]:
    """The symbols that count the input's size in whole multiples: name -> (axis, multiple)."""
    image = program.graph_signature.user_inputs[0]
    found: dict[str, tuple[int, int]] = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.clusir.pad_whole.default and getattr(node.args[0], "name", "") == image:
            if any(node.args[1]):
                continue
            for axis, size in enumerate(node.meta["val"].shape):
                factor, rest = _factor(size)
                if factor > 1:
                    found[rest] = (axis, factor)
    return found


def _factor(size: Any) -> tuple[int, str]:
    if not isinstance(size, torch.SymInt):
        return 1, ""
    match = _MULTIPLE.fullmatch(str(size.node.expr))
    return (int(match[1] or 1), match[2]) if match else (1, "")


def anchor_sizes(model: onnx.ModelProto, entry: dict[str, tuple[int, int]]) -> None:
    """Rewrite ``Shape`` of one axis of an inner tensor as arithmetic on the input's size, and name equal axes alike.

    ``entry`` as :func:`entry_sizes` gives it; names of the input's own axes are known from the graph.
    """
    graph = model.graph
    image = graph.input[0]
    own = [d.dim_param for d in image.type.tensor_type.shape.dim]
    known = {name: (axis, 1) for axis, name in enumerate(own) if name} | entry
    _rename(graph, own, entry)
    shapes = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    counted = _Counted(graph, image.name)
    for node in graph.node:
        axis = _one_axis(node, shapes)
        match = _MULTIPLE.fullmatch(shapes[node.input[0]][axis]) if axis is not None else None
        if match is None or match[2] not in known:
            continue
        source, multiple = known[match[2]]
        made = counted.length(source, multiple, int(match[1] or 1))
        node.op_type = "Identity"
        del node.attribute[:]
        node.input[0] = made
    counted.insert()


def _rename(graph: onnx.GraphProto, own: list[str], entry: dict[str, tuple[int, int]]) -> None:
    """An axis that is as long as the input's has its name."""
    same = {f"{multiple}*{name}": own[axis] for name, (axis, multiple) in entry.items()}
    for value in graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in same:
                dim.dim_param = same[dim.dim_param]


def _one_axis(node: onnx.NodeProto, shapes: dict[str, list[str]]) -> int | None:
    if node.op_type != "Shape" or node.input[0] not in shapes:
        return None
    span = {a.name: a.i for a in node.attribute}
    start, rank = span.get("start", 0), len(shapes[node.input[0]])
    return start if 0 <= start < rank and span.get("end", rank) == start + 1 else None


class _Counted:
    """Lengths counted from the input, each made once, in front of all other nodes."""

    def __init__(self, graph: onnx.GraphProto, image: str) -> None:
        self.graph, self.image = graph, image
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[int, int, int], str] = {}

    def length(self, axis: int, multiple: int, times: int) -> str:
        key = (axis, multiple, times)
        if key not in self.made:
            name = f"clusir_size_{axis}"
            if multiple == times:
                if multiple == 1:
                    self.nodes.append(helper.make_node("Shape", [self.image], [name], start=axis, end=axis + 1))
                    self.made[key] = name
                else:
                    self.made[key] = self.length(axis, 1, 1)
            else:
                whole = self._apply("Div", self.length(axis, 1, 1), multiple)
                self.made[key] = whole if times == 1 else self._apply("Mul", whole, times)
        return self.made[key]

    def _apply(self, op_type: str, name: str, number: int) -> str:
        made, constant = f"{name}_{op_type.lower()}_{number}", f"clusir_number_{number}"
        if all(i.name != constant for i in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), constant))
        if all(made not in node.output for node in self.nodes):
            self.nodes.append(helper.make_node(op_type, [name, constant], [made]))
        return made

    def insert(self) -> None:
        kept = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *kept])
