"""PixelMajor: a map that convolutions made reaches a matrix product through explicit transposes.

On CPUs with AVX-512 OpenVINO keeps the maps of convolutions with the channels last. Where a Reshape in front of a
MatMul wants them first, it reorders with a loop that is 4 to 14 times as slow as its Transpose (2026.4.1; 16 to 64
channels of 128 pixels and more, its own condition for that loop). Written as Transpose to BxHxWxC, Reshape to BxHWxC
and Transpose to BxCxHW, the first is no work in that layout and the second is the fast kernel. ONNX Runtime takes the
first into the reorder from its blocked layout.

A map that others read too is multiplied by 2 on the way, and the constant matrix that reads it by 1/2, both exact: a
residual sum may be written over the map, and then OpenVINO copies it for the Transpose. The product has its own memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex, inferred

__all__ = ["PixelMajor"]

_CHANNELS, _LEAST_PIXELS = range(16, 65), 128
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Concat", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Erf", "Gelu"),
}


@dataclass(frozen=True)
class _Site:
    """A map, the Reshapes in front of matrix products that read it, and whether others read it too."""

    source: str
    channels: int
    reshapes: tuple[onnx.NodeProto, ...]
    shared: bool


class PixelMajor(GraphPass):
    """Transposes instead of a change of layout in front of a matrix product."""

    name = "PixelMajor"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        graph = inferred(edit.model)
        index = GraphIndex(graph)
        given = {i.name for i in edit.model.graph.input}
        weights = [t for t in edit.model.graph.initializer if t.data_type == TensorProto.FLOAT]
        index.initializers |= {t.name: t for t in weights if t.name not in given}
        sites = [site for value in index.producer if (site := _site(index, value)) is not None]
        if not sites:
            return PassResult(model, False, ("no product reads a convolution's map of 16 to 64 channels reshaped",))
        nodes = {n.output[0]: n for n in edit.model.graph.node}
        for site in sites:
            _transpose(edit, index, site, nodes)
        edit.redirect_all({})
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(sites)} maps are transposed in front of matrix products",))


def _site(index: GraphIndex, value: str) -> _Site | None:
    shape = index.shape(value)
    if shape is None or len(shape) != 4 or shape[1] not in _CHANNELS or not _of_convolutions(index, value):
        return None
    if index.element_type(value) != TensorProto.FLOAT:
        return None
    sizes = [size for size in shape[2:] if isinstance(size, int) and size]
    if len(sizes) == 2 and sizes[0] * sizes[1] < _LEAST_PIXELS:
        return None
    readers = index.users.get(value, [])
    reshapes = tuple(n for n in readers if _before_product(index, n, value))
    shared = len(reshapes) < len(readers) or value in index.outputs
    if not reshapes or (shared and not all(_constants(index, n) for n in reshapes)):
        return None
    return _Site(value, int(shape[1]), reshapes, shared)


def _of_convolutions(index: GraphIndex, value: str) -> bool:
    """Whether the map is a convolution's output, or element by element made of one: it has the channels last then."""
    seen, waiting = set[str](), [value]
    while waiting:
        node = index.producer.get(name := waiting.pop())
        if node is None or name in seen or len(index.shape(name) or []) != 4:
            continue
        if node.op_type in _CONVOLUTIONS:
            return True
        seen.add(name)
        waiting += node.input if node.op_type in _ELEMENTWISE else []
    return False


def _before_product(index: GraphIndex, node: onnx.NodeProto, value: str) -> bool:
    """A Reshape of the map to a constant shape that only products read, at most one node between.

    No other Reshape: pixel shuffles are Reshape, Transpose, Reshape, and every runtime recognises them as they are.
    """
    if node.op_type != "Reshape" or node.input[0] != value or node.output[0] in index.outputs:
        return False
    target = index.integers(node.input[1])
    # A 0 copies a length of the input, whose axes become three: only the batch stays where it was.
    if not target or 0 in target[1:] or (target[0] == 0 and index.attribute(node, "allowzero", 0)):
        return False
    readers = index.users.get(node.output[0], [])
    between = {"Mul", "Transpose", "Pow"}
    return bool(readers) and all(
        reader.op_type == "MatMul"
        or (
            reader.op_type in between
            and bool(behind := index.users.get(reader.output[0], []))
            and all(n.op_type == "MatMul" for n in behind)
        )
        for reader in readers
    )


def _constants(index: GraphIndex, reshape: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]]:
    """The products that read the Reshape and which of their inputs is constant; empty where one has no constant."""
    found = []
    for reader in index.users[reshape.output[0]]:
        at = next((k for k, name in enumerate(reader.input) if name in index.initializers), None)
        if reader.op_type != "MatMul" or at is None:
            return []
        found.append((reader, at))
    return found


def _transpose(edit: GraphEdit, index: GraphIndex, site: _Site, nodes: dict[str, onnx.NodeProto]) -> None:
    source, hint = site.source, f"{site.source}/pixels"
    if site.shared:
        source = edit.node("Mul", [source, edit.constant(2.0, f"{hint}/two")], f"{hint}/doubled")
        for reader, at in [pair for node in site.reshapes for pair in _constants(index, node)]:
            half = edit.array(reader.input[at]) * np.float32(0.5)
            nodes[reader.output[0]].input[at] = edit.constant(half, f"{reader.input[at]}/half")
    last = edit.node("Transpose", [source], f"{hint}/last", perm=[0, 2, 3, 1])
    flat = edit.reshape(last, [0, -1, site.channels], f"{hint}/flat")
    first = edit.node("Transpose", [flat], hint, perm=[0, 2, 1])
    for node in site.reshapes:
        nodes[node.output[0]].input[0] = first
