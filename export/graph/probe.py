"""What a piece of an ONNX graph computes, found by running it instead of by matching its operators.

A region of linear operators is known completely by its response to impulses, however it is written: with slices, with
reshapes and transposes, with matrices. A pass asks for the region behind a value, guesses what it is (a strided
convolution, an rfft2), and believes the guess when the region and the guess agree on random input; for a linear map
that is a proof up to rounding and a chance of measure zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.export.graph.index import captured, inferred

__all__ = ["PROBE_BATCH", "LinearGraph", "Region"]

PROBE_BATCH = 2
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
    """A graph with every size fixed: shapes, constants, producers, and linear regions that can be run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opsets = list(model.opset_import)
        self.shapes = _fixed_shapes(model)
        self.constants = _Constants({t.name: t for t in self.graph.initializer})
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

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape with the batch set to PROBE_BATCH; None where it is not known."""
        return self.shapes.get(name)

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
        import onnxruntime

        constants = {
            i: self.constants[i] for n in region.nodes for i in n.input if i in self.constants and i not in feeds
        }
        nodes = []
        for original in region.nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            if node.op_type == "Reshape" and node.input[1] not in self.constants:
                shape = self.shape(node.output[0])
                assert shape is not None
                node.input[1] = f"{node.output[0]}/probe_shape"
                constants[node.input[1]] = np.array(shape, np.int64)
            nodes.append(node)
        graph = helper.make_graph(
            nodes,
            "probe",
            [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in feeds.items()],
            [helper.make_tensor_value_info(region.output, onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: NDArray[np.float32] = session.run(None, dict(feeds))[0]
        return result

    def random(self, names: Sequence[str], seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Standard normal arrays of the fixed shapes."""
        rng = np.random.default_rng(seed)
        return {n: rng.standard_normal(self.shapes[n], dtype=np.float32) for n in names}


def _fixed_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by inference with axis 0 of every input set to PROBE_BATCH; sizes that stay unknown leave no entry."""
    graph = inferred(model, PROBE_BATCH, data_prop=True)
    shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes
