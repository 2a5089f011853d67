"""InstanceNormalization as plain operators that stay exact where a map is nearly of one colour.

Runtimes add up a map in order, in float32: of 65,536 equal numbers the sum is off by a thousandth, and the norm divides
what is left by a deviation near 0. Here the mean is taken away twice, each time by a product with a row of ones: a
product adds in blocks, and no runtime turns it back into the operator, as OpenVINO does with means.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex, inferred
from clusir.export.graph.norm import write_norm

__all__ = ["SteadyNorm"]


class SteadyNorm(GraphPass):
    """Write out every InstanceNormalization of float32 maps [B, C, H, W] or rows [B, C, N]. It takes three to four
    times the operator's own time."""

    name = "SteadyNorm"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*inferred(edit.model).value_info, *edit.model.graph.input)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        norms = [node for node in edit.model.graph.node if node.op_type == "InstanceNormalization"]
        chosen = [node for node in norms if ranks.get(node.input[0]) in (3, 4)]
        index = GraphIndex(edit.model.graph)
        for node in chosen:
            rank = ranks[node.input[0]]
            _write_out(edit, node, rank, _grouped(index, node, ranks) if rank == 3 else None)
        if not chosen:
            return PassResult(model, False, ("no InstanceNormalization was found",))
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(chosen)} of {len(norms)} instance norms written out",))


def _grouped(index: GraphIndex, node: NodeProto, ranks: Mapping[str, int]) -> str | None:
    """The maps [B, C, H, W] whose groups of channels are the rows of a norm, as PyTorch's GroupNorm has them."""
    source = index.producer.get(node.input[0])
    if source is None or source.op_type != "Reshape" or ranks.get(source.input[0]) != 4:
        return None
    shape = index.integers(source.input[1]) or []
    return source.input[0] if len(shape) == 3 and shape[0] == 0 and shape[2] == -1 else None


def _write_out(edit: GraphEdit, node: NodeProto, rank: int, maps: str | None) -> None:
    """``maps``: [B, C, H, W] whose groups are the rows that are normed: their width is where rows are folded, since a
    product of a million numbers in a row adds too many in one go."""
    source, name = node.input[0], node.output[0]
    shape = None
    if maps is not None:
        width = edit.node("Shape", [maps], f"{name}/width", start=3, end=4)
        lead = edit.constant([0, 0, -1], f"{name}/lead", np.int64)
        shape = edit.node("Concat", [lead, width], f"{name}/folded", axis=0)

    def folded(value: str, hint: str) -> str:
        return value if shape is None else edit.node("Reshape", [value, shape], f"{hint}/map")

    wide = rank == 4 or shape is not None
    first = folded(source, f"{name}/source")
    right = _shares(edit, first, 3 if wide else 2, False, f"{name}/across")
    down = _shares(edit, first, 2, True, f"{name}/down") if wide else None

    def mean(value: str, hint: str) -> str:
        rows = edit.node("MatMul", [folded(value, hint), right], f"{hint}/rows")
        found = rows if down is None else edit.node("MatMul", [down, rows], hint)
        return found if shape is None else edit.reshape(found, [0, 0, 1], f"{hint}/row")

    near = edit.node("Sub", [source, mean(source, f"{name}/mean")], f"{name}/near")
    middle = edit.node("Sub", [near, mean(near, f"{name}/left")], f"{name}/centred")
    variance = mean(edit.node("Mul", [middle, middle], f"{name}/square"), f"{name}/variance")
    write_norm(edit, node, middle, variance, rank)


def _shares(edit: GraphEdit, source: str, axis: int, row: bool, hint: str) -> str:
    """What a product takes the mean over ``axis`` of ``source`` with: 1 / n, n times, as a row or a column."""
    count = edit.node("Shape", [source], f"{hint}/count", start=axis, end=axis + 1)
    number = edit.node("Cast", [count], f"{hint}/number", to=TensorProto.FLOAT)
    one = edit.constant([1], f"{hint}/one", np.int64)
    shape = edit.node("Concat", [one, count] if row else [count, one], f"{hint}/shape", axis=0)
    return edit.node("Expand", [edit.node("Reciprocal", [number], f"{hint}/share"), shape], hint)
