"""InstanceNormalization as plain operators that stay exact where a map is nearly of one colour.

Runtimes add up a map in order, in float32: of 65,536 equal numbers the sum is off by a thousandth, and the norm divides
what is left by a deviation near 0. Here the mean is taken away twice, each time by a product with a row of ones: a
product adds in blocks, and no runtime turns it back into the operator, as OpenVINO does with means.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import inferred
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
        for node in chosen:
            _write_out(edit, node, ranks[node.input[0]])
        if not chosen:
            return PassResult(model, False, ("no InstanceNormalization was found",))
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(chosen)} of {len(norms)} instance norms written out",))


def _write_out(edit: GraphEdit, node: NodeProto, rank: int) -> None:
    source, name = node.input[0], node.output[0]
    right = _shares(edit, source, rank - 1, False, f"{name}/across")
    down = _shares(edit, source, 2, True, f"{name}/down") if rank == 4 else None

    def mean(value: str, hint: str) -> str:
        rows = edit.node("MatMul", [value, right], f"{hint}/rows")
        return rows if down is None else edit.node("MatMul", [down, rows], hint)

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
