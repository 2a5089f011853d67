"""What the quantiser's steps hand on: one graph, its layers, what calibration saw of it, and, in the end, integers.

A step is to the quantiser what a pass is to a graph: ``apply(prepared) -> prepared``, with notes. The list of steps is
in ``steps.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from clusir.export.quantize.layers import Graph, Layer, load_graph
from clusir.export.quantize.ranges import Calibration, TensorRange
from clusir.export.quantize.siblings import Sibling
from clusir.export.quantize.statistics import Statistics

__all__ = ["Described", "Prepared", "Step"]

Memory = dict[tuple[str, bytes], TensorProto]


@dataclass(frozen=True)
class Prepared:
    """``graph``: the float graph as it is now. ``layers``: all of it, with the reason why some stay in float.

    ``statistics`` and ``ranges`` are those of the graph as it is now; ``sums`` are additions that become integers too;
    ``model`` is the INT8 model, once it is made. ``known`` remembers rounded weights for the next variant; ``sibling``
    is another graph of the model that was measured already.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    calibration: Calibration
    statistics: Statistics = field(default_factory=Statistics)
    ranges: Mapping[str, TensorRange] = field(default_factory=dict)
    sums: tuple[str, ...] = ()
    model: ModelProto | None = None
    notes: tuple[str, ...] = ()
    known: Memory = field(default_factory=dict, repr=False)
    sibling: Sibling | None = None

    @property
    def chosen(self) -> list[Layer]:
        """The layers that become integers."""
        return [layer for layer in self.layers if not layer.keep]

    def with_model(self, model: ModelProto) -> Prepared:
        """The same on a changed float graph."""
        return replace(self, graph=load_graph(model))

    def noted(self, note: str) -> Prepared:
        return replace(self, notes=(*self.notes, note))

    def keeping(self, reasons: Mapping[str, str]) -> Prepared:
        """The same with layers (by name) left in float for a reason; layers that are so already keep theirs."""
        layers = (replace(x, keep=x.keep or reasons.get(x.name, "")) for x in self.layers)
        return replace(self, layers=tuple(layers))

    def relu_behind(self, layer: Layer) -> onnx.NodeProto | None:
        """The ReLU that alone reads the layer: the range of its output, which starts at 0, absorbs it."""
        output = self.graph.node(layer).output[0]
        readers = self.graph.consumers.get(output, [])
        alone = len(readers) == 1 and readers[0].op_type == "Relu" and output not in self.graph.outputs
        return readers[0] if alone else None

    def touched(self, layer: Layer) -> set[str]:
        """The maps that become integers with a layer."""
        node, relu = self.graph.node(layer), self.relu_behind(layer)
        return {node.input[0], node.output[0], *(relu.output if relu is not None else ())}

    def tensors(self, layers: Iterable[Layer]) -> set[str]:
        """The maps that become integers with these layers, and with the sums behind them."""
        names = {name for layer in layers for name in self.touched(layer)}
        return names | {name for node in self.sum_nodes() for name in (*node.input, *node.output)}

    def sum_nodes(self) -> Sequence[NodeProto]:
        wanted = set(self.sums)
        return [node for node in self.graph.model.graph.node if node.name in wanted]


class Step(Protocol):
    """One step of the quantiser. ``describe`` says in JSON what of it may vary."""

    @property
    def name(self) -> str: ...

    def apply(self, prepared: Prepared) -> Prepared: ...

    def describe(self) -> dict[str, Any]: ...


class Described:
    """A step that is a frozen dataclass: its name is that of its class, its fields are what varies."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def describe(self) -> dict[str, Any]:
        return {"step": self.name, **asdict(self)}  # type: ignore[call-overload]
