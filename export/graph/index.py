"""Who makes and who uses each value of an ONNX graph, what shape it has, and an order that defines before use."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.errors import ExportError

__all__ = ["GraphIndex", "Names", "captured", "copied", "drop_unused", "inferred", "sort_nodes"]

M = TypeVar("M", onnx.NodeProto, onnx.AttributeProto, onnx.TensorProto, onnx.SparseTensorProto, onnx.ValueInfoProto)

_KINDS = onnx.AttributeProto
_NO_GRAPH = frozenset(
    (_KINDS.FLOAT, _KINDS.INT, _KINDS.STRING, _KINDS.TENSOR, _KINDS.FLOATS, _KINDS.INTS, _KINDS.STRINGS)
)  # what nearly all attributes are, told by one look
_CONSTANT_SIZE = 1 << 12  # a constant read for its integers (axes, indices) is small


def captured(node: onnx.NodeProto) -> list[str]:
    """Every value that a node reads: its inputs, and what its branches take from the graph around them."""
    found = [i for i in node.input if i]
    for attribute in node.attribute:
        if attribute.type in _NO_GRAPH:
            continue
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            for inner in graph.node:
                found += (i for i in captured(inner) if i not in own)
                own.update(inner.output)
            found += (o.name for o in graph.output if o.name not in own)
    return found


class Names:
    """Every name that a graph uses, in its branches too, and new ones beside them.

    A value of a branch is no value of the graph around it, but a new value outside that has its name would be hidden
    inside, so those count as well.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken: set[str] = set()
        self._collect(graph)

    def _collect(self, graph: onnx.GraphProto) -> None:
        self._taken.update(v.name for v in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
        self._taken.update(t.values.name for t in graph.sparse_initializer)
        for node in graph.node:
            self._taken.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    self._collect(inner)

    def like(self, pattern: re.Pattern[str]) -> str:
        """The first name, in the order of the alphabet, in which the pattern occurs; empty where there is none."""
        return next((name for name in sorted(self._taken) if pattern.search(name)), "")

    def fresh(self, hint: str) -> str:
        """``hint``, with a number behind it where it is taken."""
        name, k = hint, 1
        while name in self._taken:
            name, k = f"{hint}_{k}", k + 1
        self._taken.add(name)
        return name


def sort_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes by how many others must run before them in a row, and otherwise as they were. Raises ExportError for a
    cycle."""
    waiting = list(nodes)
    maker = {o: k for k, n in enumerate(waiting) for o in n.output if o}
    needs = [{maker[i] for i in captured(n) if i in maker} for n in waiting]
    readers: list[list[int]] = [[] for _ in waiting]
    for k, need in enumerate(needs):
        for made in need:
            readers[made].append(k)
    missing = [len(need) for need in needs]
    ordered: list[int] = []
    ready = [k for k, count in enumerate(missing) if not count]
    while ready:
        ordered += ready
        behind: list[int] = []
        for made in ready:
            for k in readers[made]:
                missing[k] -= 1
                if not missing[k]:
                    behind.append(k)
        ready = sorted(behind)
    if len(ordered) < len(waiting):
        stuck = next(n for n, count in zip(waiting, missing, strict=True) if count)
        raise ExportError(f"the graph has a cycle through {stuck.name}")
    return [waiting[k] for k in ordered]


def inferred(
    model: onnx.ModelProto, batch: int | None = None, data_prop: bool = False, side: int | None = None
) -> onnx.GraphProto:
    """The graph, without its weights, with the shapes that ONNX infers; old notes of shapes are not believed.

    ``batch`` sets axis 0 of every input that leaves it open, ``side`` every other axis (the outputs' shapes are then
    inferred anew). Weights only lend their shape: copying them each time made the passes over a large network take
    half an hour.
    """
    graph = onnx.GraphProto()
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    inputs = {i.name for i in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _CONSTANT_SIZE:  # a shape, an axis: inference reads its numbers
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if batch is not None or side is not None:
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim if value.name in inputs else []
            for axis, dim in enumerate(dims):
                length = side if axis else batch
                if length is not None and not dim.HasField("dim_value"):
                    dim.dim_value = length
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
    light = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    light.functions.extend(model.functions)
    return onnx.shape_inference.infer_shapes(light, data_prop=data_prop).graph


class GraphIndex:
    """A view of one graph; build it again after the graph has changed. Shapes come from ``value_info``."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.producer = {o: n for n in graph.node for o in n.output if o}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(captured(node)):
                self.users.setdefault(name, []).append(node)
        self.outputs = {o.name for o in graph.output}
        given = {i.name for i in graph.input}
        # An initializer that is a graph input as well is its default: whoever runs the graph may give another.
        self.initializers = {t.name: t for t in graph.initializer if t.name not in given}
        self.values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}

    def shape(self, name: str) -> list[int | str] | None:
        """Lengths and names of axes ("" where unknown); None where not even the rank is known."""
        if name in self.initializers:
            return list(self.initializers[name].dims)
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        dims = value.type.tensor_type.shape.dim
        return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]

    def same_shape(self, a: str, b: str) -> bool:
        """Whether two values are known to have one shape, axis by axis, by length or by name."""
        first, second = self.shape(a), self.shape(b)
        return first is not None and first == second and "" not in first

    def integers(self, name: str) -> list[int] | None:
        """The values of a small integer constant, flattened; None where it is no such constant."""
        tensor = self.initializers.get(name)
        if tensor is None:
            node = self.producer.get(name)
            if node is None or node.op_type != "Constant":
                return None
            attribute = node.attribute[0]
            if attribute.name == "value_int":
                return [attribute.i]
            if attribute.name == "value_ints":
                return list(attribute.ints)
            if attribute.name != "value":
                return None
            tensor = attribute.t
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
            return None
        array = numpy_helper.to_array(tensor)
        return [int(v) for v in array.reshape(-1)] if array.size <= _CONSTANT_SIZE else None

    @staticmethod
    def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
        return next((a.i for a in node.attribute if a.name == name), default)

    def element_type(self, name: str) -> int:
        value = self.values.get(name)
        return value.type.tensor_type.elem_type if value is not None else TensorProto.UNDEFINED

    def typed(self, name: str, like: str) -> onnx.ValueInfoProto:
        """A value called ``name`` with the type of ``like``, and its rank; the lengths that are known stay."""
        shape = self.shape(like)
        sizes = None if shape is None else [s or None for s in shape]
        return helper.make_tensor_value_info(name, self.element_type(like), sizes)

    def cone(self, name: str, end: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that feed ``end`` through ``name`` and nothing else, in the order of the graph."""
        inside = {id(end)}
        found: list[onnx.NodeProto] = []
        queue = [name]
        while queue:
            node = self.producer.get(queue.pop())
            if node is None or id(node) in inside:
                continue
            used = [u for o in node.output for u in self.users.get(o, ())]
            if any(o in self.outputs for o in node.output) or any(id(u) not in inside for u in used):
                continue
            inside.add(id(node))
            found.append(node)
            # An input that was refused because of a node outside may qualify now that this one is in.
            queue = [*queue, *(i for n in found for i in captured(n))]
        order = {id(n): k for k, n in enumerate(self.graph.node)}
        return sorted(found, key=lambda n: order[id(n)])


def copied(message: M) -> M:
    """The same message again: a repeated field cannot be assigned from its own elements."""
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, initializers and value types that reach no output; the nodes are sorted.

    An initializer that is a graph input too stays: it is that input's default.
    """
    needed = {v.name for v in (*graph.output, *graph.input)}
    places: dict[str, int] = {}
    for place, node in enumerate(reversed(sort_nodes(graph.node))):
        if any(o in needed for o in node.output):
            places.update((o, -place) for o in node.output if o)
            needed.update(captured(node))
    _keep(graph.node, lambda node: any(o in places for o in node.output))
    graph.node.sort(key=lambda node: next(places[o] for o in node.output if o))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)
    _keep(graph.sparse_initializer, lambda tensor: tensor.values.name in needed)
    _keep(graph.value_info, lambda value: value.name in places)


def _keep(messages: Any, wanted: Callable[[Any], bool]) -> None:
    """Leave those of a repeated field that are ``wanted``. The others, weights among them, are not copied."""
    for place in range(len(messages) - 1, -1, -1):
        if not wanted(messages[place]):
            del messages[place]
