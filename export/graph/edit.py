"""Small, safe changes to an ONNX graph: add nodes and constants, point users elsewhere, drop what nobody reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.export.graph.index import Names, drop_unused, inferred, sort_nodes
from clusir.export.graph.probe import LinearGraph

__all__ = ["GraphEdit", "plain_convolution", "pointwise_weight"]


def plain_convolution(node: onnx.NodeProto) -> bool:
    """Whether a node is a Conv of stride 1, dilation 1 and one group. It may have a bias, and pads that are written
    out (with zeros around, possibly uneven)."""
    if node.op_type != "Conv":
        return False
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    ones = all(v == 1 for name in ("strides", "dilations") for v in values.get(name, []))
    return ones and values.get("group", 1) == 1 and values.get("auto_pad", b"NOTSET") == b"NOTSET"


def pointwise_weight(linear: LinearGraph, node: onnx.NodeProto | None) -> NDArray[Any] | None:
    """[outputs, inputs] of a 1x1 Conv of float32 maps that neither strides nor pads and has a constant weight; None
    for any other node. It may have a bias."""
    if node is None or not plain_convolution(node) or not linear.is_float(node.input[0]):
        return None
    weight = linear.constants.get(node.input[1])
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    if weight is None or weight.shape[2:] != (1, 1) or any(pads):
        return None
    return weight[:, :, 0, 0]


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Read other values, in the branches too (ONNX forbids a branch to hide a name of the graph around it)."""
    if any(i in names for i in node.input):
        node.input[:] = [names.get(i, i) for i in node.input]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                _rename(inner, names)


class GraphEdit:
    """A copy of a model under change. New values get names of their own; nodes stay in a valid order. ``sides``: see
    :class:`clusir.export.graph.probe.LinearGraph`."""

    def __init__(self, model: onnx.ModelProto, sides: tuple[int, int] | None = None) -> None:
        self.model = onnx.ModelProto()
        self._sides = sides
        self.model.CopyFrom(model)
        self._names = Names(self.model.graph)
        self._linear: LinearGraph | None = None
        self._last: LinearGraph | None = None  # before the change

    def linear(self) -> LinearGraph:
        """The graph as it is now, indexed for probing; rebuilt after a change."""
        if self._linear is None:
            self._linear = self._last = LinearGraph(self.model, self._sides, self._last)
        return self._linear

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant. Raises KeyError if it is none."""
        if self._linear is not None:
            return self._linear.constants[name]
        graph = self.model.graph  # to index a changed graph anew for one number takes a second of a large one
        if name not in {value.name for value in graph.input}:
            for tensor in graph.initializer:
                if tensor.name == name:
                    return numpy_helper.to_array(tensor)
        return self.linear().constants[name]

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has: ``hint``, or that with a number behind it."""
        return self._names.fresh(hint)

    def constant(self, array: Any, hint: str, dtype: Any = np.float32) -> str:
        name = self.fresh(hint)
        values = np.ascontiguousarray(np.asarray(array), dtype=dtype)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        output = self.fresh(hint)
        self.model.graph.node.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        self._linear = None
        return output

    def reshape(self, value: str, shape: Sequence[int], hint: str) -> str:
        return self.node("Reshape", [value, self.constant(shape, f"{hint}/shape", np.int64)], hint)

    def convolution(self, source: str, weight: Any, *, stride: int, group: int, hint: str) -> str:
        """An unpadded convolution with a constant kernel."""
        kernel = self.constant(weight, f"{hint}/weight")
        return self.node("Conv", [source, kernel], hint, strides=[stride, stride], group=group)

    def replace_convolution(
        self, node: onnx.NodeProto, source: str, weight: Any, pads: Sequence[int], stride: int
    ) -> None:
        """Give a Conv another input, weight, padding and stride; its bias stays."""
        node.input[0] = source
        node.input[1] = self.constant(weight, f"{node.output[0]}/weight")
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("strides", [stride, stride]))
        node.attribute.append(helper.make_attribute("pads", list(pads)))
        self._linear = None

    def mix_outputs(self, conv: onnx.NodeProto, matrix: NDArray[Any]) -> str:
        """A Conv that computes ``matrix`` [O', O] times the output channels of ``conv``; returns its output."""
        weight = self.array(conv.input[1]).astype(np.float64)
        inputs = [
            conv.input[0],
            self.constant(np.tensordot(matrix, weight, axes=(1, 0)), f"{conv.output[0]}/mixed_weight"),
        ]
        if len(conv.input) > 2 and conv.input[2]:
            inputs.append(self.constant(matrix @ self.array(conv.input[2]), f"{conv.output[0]}/mixed_bias"))
        kept = {a.name: helper.get_attribute_value(a) for a in conv.attribute if a.name in ("pads", "strides")}
        return self.node("Conv", inputs, f"{conv.output[0]}/mixed", **kept)

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``. A graph output keeps its name: ``new`` takes it over."""
        self.redirect_all({old: new})

    def redirect_all(self, names: Mapping[str, str]) -> None:
        """The same for many values at once (old name to new name); no new name may be an old one too."""
        graph = self.model.graph
        names = dict(names)
        outputs = {o.name for o in graph.output}
        for output in [o.name for o in graph.output if o.name in names]:
            before, taken = self.fresh(f"{output}/before"), names.pop(output)
            if taken in outputs or not any(taken in n.output for n in graph.node):
                # It has a name that must stay: another output's, an input's or a constant's. The output is a copy.
                graph.node.append(helper.make_node("Identity", [taken], [output], name=f"{before}_copied"))
                self._take_over(output, before, graph.node[:-1])
                names[before] = taken
                continue
            own = {output: before, taken: output}
            for node in graph.node:
                node.output[:] = [own.get(o, o) for o in node.output]
                _rename(node, own)
            names = {own.get(old, old): own.get(new, new) for old, new in names.items()} | {before: output}
        for node in graph.node:
            _rename(node, {old: new for old, new in names.items() if new not in node.output})
        ordered = sort_nodes(graph.node)
        del graph.node[:]
        graph.node.extend(ordered)
        self._linear = None

    @staticmethod
    def _take_over(output: str, before: str, nodes: Iterable[onnx.NodeProto]) -> None:
        """Let the value ``output`` be called ``before`` in all ``nodes``."""
        for node in nodes:
            node.output[:] = [before if o == output else o for o in node.output]
            _rename(node, {output: before})

    def drop_unused(self) -> None:
        """Remove nodes and initializers that reach no output, and stale shape notes."""
        graph = self.model.graph
        drop_unused(graph)
        del graph.value_info[:]
        graph.value_info.extend(inferred(self.model).value_info)
        self._linear = None
