"""What a piece of an ONNX graph computes, found by running it instead of by matching its operators.

A region of linear operators is known completely by its response to impulses, however it is written: with slices, with
reshapes and transposes, with matrices. A pass asks for the region behind a value, guesses what it is (a strided
convolution, an rfft2), and believes the guess when the region and the guess agree on random input; for a linear map
that is a proof up to rounding and a chance of measure zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph.index import captured, copied, inferred
from clusir.export.graph.sizes import has_open_sides, runtime_shapes
from clusir.export.graph.values import Looked, Values

__all__ = ["PROBE_BATCH", "LinearGraph", "Region"]

Run = Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]

PROBE_BATCH = 2
_BATCHES = (PROBE_BATCH, PROBE_BATCH + 1)
_MAX_NODES = 48
# Linear in their data operands, given that the operands named here are constants.
_ONE_OPERAND = {
    *("Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Neg", "Gather", "DFT"),
    *("SpaceToDepth", "DepthToSpace", "Identity", "Flatten", "Pad"),
}
_SUMS = frozenset(("Add", "Sub", "Concat"))


@dataclass(frozen=True)
class Region:
    """Nodes, in the order of the graph, that compute ``output`` from ``sources`` and constants."""

    sources: tuple[str, ...]
    output: str
    nodes: tuple[onnx.NodeProto, ...]


class _Constants(Mapping[str, NDArray[np.generic]]):
    """Constants by name, unpacked when they are asked for."""

    def __init__(self, tensors: dict[str, onnx.TensorProto]) -> None:
        self.tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class LinearGraph:
    """A graph with every size fixed: shapes, constants, producers, and linear regions that can be run.

    ``open`` are the values whose axis 0 is the batch, if that is left open; their shape says PROBE_BATCH there.
    ``sides``: the height and width that a graph which leaves them open is looked at with; ``sized`` says whether that
    was so, and then no shape may enter what is written. Without ``sides``, values of open sizes have no shape here.
    ``before``: the same graph before an edit, after which a value that keeps its name has the shape that it had.
    """

    def __init__(
        self, model: onnx.ModelProto, sides: tuple[int, int] | None = None, before: LinearGraph | None = None
    ) -> None:
        self._model, self.graph = model, model.graph
        self.opsets = list(model.opset_import)
        earlier = None if before is None else before._values
        self._values: Values = Values(model, partial(_look, sides=sides), earlier)
        self.sized, self.shapes, self.open = self._values.sized, self._values.shapes, self._values.open
        self._others: dict[tuple[int, int], LinearGraph] = {}
        self._elsewhere: dict[tuple[int, int], Values] = {} if before is None else dict(before._elsewhere)
        given = {i.name for i in self.graph.input}
        # An initializer that is a graph input as well is its default: whoever runs the graph may give another.
        self.constants = _Constants({t.name: t for t in self.graph.initializer if t.name not in given})
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants.tensors[node.output[0]] = node.attribute[0].t
        self.producer = {o: n for n in self.graph.node for o in n.output if o}
        self.order = {id(n): k for k, n in enumerate(self.graph.node)}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(captured(node)):
                self.users.setdefault(name, []).append(node)
        self.outputs = {o.name for o in self.graph.output}

    def at(self, sides: tuple[int, int]) -> LinearGraph:
        """The same graph at another height and width."""
        if sides in self._others:
            return self._others[sides]
        other = self._others[sides] = copy.copy(self)
        other._values = Values(self._model, partial(_look, sides=sides), self._elsewhere.get(sides))
        other.sized, other.shapes, other.open = other._values.sized, other._values.shapes, other._values.open
        self._elsewhere[sides] = other._values
        return other

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape with the batch set to PROBE_BATCH; None where it is not known."""
        return self.shapes.get(name)

    def is_float(self, name: str) -> bool:
        """Whether a value is float32, what passes write their constants in."""
        return name in self._values.floats

    def linear_operands(self, node: onnx.NodeProto) -> list[str] | None:
        """The operands in which a node is linear, its other operands being constants; None for any other node."""
        data = [i for i in node.input if i and i not in self.constants]
        if node.op_type in _ONE_OPERAND:
            # The target shape of a Reshape may be computed; what it comes to is known from the shapes.
            return [node.input[0]] if node.input[0] in data and self._operands_known(node, data) else None
        if node.op_type in _SUMS:
            return data if len(data) == len(node.input) and data else None
        if node.op_type in ("MatMul", "Mul"):
            return data if len(data) == 1 else None
        if node.op_type == "Div":
            return data if data == [node.input[0]] else None
        return None

    def _operands_known(self, node: onnx.NodeProto, data: list[str]) -> bool:
        if node.op_type == "Pad" and (len(node.input) < 2 or (node.attribute and node.attribute[0].s != b"constant")):
            return False
        return len(data) == 1 or (node.op_type == "Reshape" and self.shape(node.output[0]) is not None)

    def cuts(self, output: str, widest: int = 1) -> Iterator[Region]:
        """Regions that end in ``output``, growing, each with at most ``widest`` sources."""
        frontier, stuck = {output}, set[str]()
        nodes: list[onnx.NodeProto] = []
        while len(nodes) < _MAX_NODES:
            open_values = [v for v in frontier if v not in stuck]
            if not open_values:
                return
            # The latest value first: then a frontier is a cut, with no path around it.
            value = max(open_values, key=lambda v: self.order.get(id(self.producer.get(v)), -1))
            node = self.producer.get(value)
            operands = None if node is None else self.linear_operands(node)
            if node is None or operands is None:
                stuck.add(value)
                continue
            frontier -= set(node.output)
            nodes.append(node)
            frontier |= set(operands)
            if len(frontier) <= widest:
                ordered = sorted(nodes, key=lambda n: self.order[id(n)])
                yield Region(tuple(sorted(frontier, key=self._place)), output, tuple(ordered))

    def _place(self, value: str) -> int:
        node = self.producer.get(value)
        return -1 if node is None else self.order[id(node)]

    def run(self, region: Region, feeds: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The region's output for arrays of the sources' fixed shapes."""
        return self.runner(region)(feeds)

    def runner(self, region: Region) -> Run:
        """The region as a function from arrays of the sources' fixed shapes to its output, for many runs."""
        import onnxruntime

        constants = {
            i: self.constants[i]
            for n in region.nodes
            for i in n.input
            if i in self.constants and i not in region.sources
        }
        nodes = [self._sized(copied(node), constants) for node in region.nodes]
        graph = helper.make_graph(
            nodes,
            "probe",
            [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, self.shapes[k]) for k in region.sources],
            [helper.make_tensor_value_info(region.output, onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, dict(given))[0]

    def _sized(self, node: onnx.NodeProto, constants: dict[str, NDArray[np.generic]]) -> onnx.NodeProto:
        """A Reshape or Resize whose target is computed, with what it comes to as a constant."""
        at = {"Reshape": 1, "Resize": 3}.get(node.op_type)
        if at is None or len(node.input) <= at or not node.input[at] or node.input[at] in self.constants:
            return node
        shape = self.shape(node.output[0])
        assert shape is not None, "a region ends in values of known shape"
        axes = next((a.ints for a in node.attribute if a.name == "axes"), range(len(shape)))
        node.input[at] = f"{node.output[0]}/probe_shape"
        constants[node.input[at]] = np.array([shape[axis] for axis in axes], np.int64)
        return node

    def random(self, names: Sequence[str], seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Standard normal arrays of the fixed shapes."""
        rng = np.random.default_rng(seed)
        return {n: rng.standard_normal(self.shapes[n], dtype=np.float32) for n in names}


def _look(model: onnx.ModelProto, sides: tuple[int, int] | None) -> Looked:
    sized = None if sides is None or not has_open_sides(model) else _sized_shapes(model, sides)
    return Looked(*_fixed_shapes(model), False) if sized is None else Looked(*sized, True)


def _fixed_shapes(model: onnx.ModelProto) -> tuple[dict[str, tuple[int, ...]], set[str], set[str]]:
    """Shapes by inference with axis 0 of every input that leaves it open set to PROBE_BATCH, and two sets of names:
    values whose axis 0 follows the batch, and float32 values.

    Sizes that stay unknown, or follow the batch in another axis, leave no entry: a pass may rely on all it finds.
    """
    found = []
    for batch in _BATCHES:
        graph = inferred(model, batch, data_prop=True)
        values = [*graph.value_info, *graph.input, *graph.output]
        shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        for value in values:
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                if all(d.HasField("dim_value") for d in dims):
                    shapes[value.name] = tuple(d.dim_value for d in dims)
        found.append(shapes)
    same, batched = _compared(*found)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    floats |= {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return same, batched, floats


def _sized_shapes(
    model: onnx.ModelProto, sides: tuple[int, int]
) -> tuple[dict[str, tuple[int, ...]], set[str], set[str]] | None:
    """What :func:`_fixed_shapes` tells, of a graph of open height and width at ``sides``; None where it does not run at
    that size."""
    try:
        first, second = (runtime_shapes(model, batch, sides) for batch in _BATCHES)
    except ExportError:
        return None
    same, batched = _compared({n: v.shape for n, v in first.items()}, {n: v.shape for n, v in second.items()})
    return same, batched, {name for name, value in first.items() if value.floats}


def _compared(
    one: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """The shapes at one batch that differ at another in axis 0 alone, and which of them do."""
    same = {n: s for n, s in one.items() if n in other and len(s) == len(other[n]) and s[1:] == other[n][1:]}
    return same, {n for n, s in same.items() if s != other[n]}
