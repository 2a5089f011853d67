"""Who makes and who uses each value of an ONNX graph, what shape it has, and an order that defines before use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.errors import ExportError

__all__ = ["GraphIndex", "captured", "copied", "drop_unused", "sort_nodes"]

M = TypeVar("M", onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto)

_CONSTANT_SIZE = 1 << 12  # a constant read for its integers (axes, indices) is small


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Every value that a node reads: its inputs, and what its branches take from the graph around them."""
    yield from (i for i in node.input if i)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            for inner in graph.node:
                yield from (i for i in captured(inner) if i not in own)
                own.update(inner.output)
            yield from (o.name for o in graph.output if o.name not in own)


def sort_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each behind those that make its inputs; otherwise as they were. Raises ExportError for a cycle."""
    waiting = list(nodes)
    unmade = {o for n in waiting for o in n.output}
    needs = [{i for i in captured(n) if i in unmade} for n in waiting]
    ordered: list[onnx.NodeProto] = []
    made: set[str] = set()
    while waiting:
        ready = [k for k, need in enumerate(needs) if need <= made]
        if not ready:
            raise ExportError(f"the graph has a cycle through {waiting[0].name}")
        # Take the whole prefix of ready nodes in their old order, so that the file stays readable.
        for k in ready:
            ordered.append(waiting[k])
            made.update(waiting[k].output)
        chosen = set(ready)
        waiting = [n for k, n in enumerate(waiting) if k not in chosen]
        needs = [n for k, n in enumerate(needs) if k not in chosen]
    return ordered


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
        self.initializers = {t.name: t for t in graph.initializer}
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
    """Remove nodes, initializers and value types that nothing reads any more."""
    while True:
        index = GraphIndex(graph)
        used = set(index.users) | index.outputs
        dead = [n for n in graph.node if not any(o in used for o in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [copied(t) for t in graph.initializer if t.name in used]
    values = [copied(v) for v in graph.value_info if v.name in index.producer]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.value_info.extend(values)
