"""Norms and sums over pixels as plain operators that stay exact where a map is nearly of one colour.

Runtimes add up a map in order, in float32: of 65,536 equal numbers the sum is off by a thousandth. An instance norm
divides what is left by a deviation near 0; attention between channels compares queries and keys, each divided by the
root of such a sum. Here sums are products with rows of ones: a product adds in blocks, and no runtime turns it back
into the operator, as OpenVINO does with means. Products over the pixels are added up in blocks of their own: what
takes the largest of them takes others where they are off. InstanceNormalization takes the mean away twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex, inferred
from clusir.export.graph.norm import product_over_rows, sum_over_map, sum_over_rows, write_norm

__all__ = ["SteadyNorm"]

_SUMS = ("ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool")
_LEAST = 1024  # numbers of a fixed row; fewer are added up well enough


class SteadyNorm(GraphPass):
    """Write out every InstanceNormalization of float32 maps [B, C, H, W] or rows [B, C, N], and every sum, mean, norm
    and sum of squares over height and width of maps or over a last axis that is open or long, and every product of
    channels over such an axis. A norm takes three to four times the operator's own time."""

    name = "SteadyNorm"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred(edit.model, data_prop=True).value_info, *edit.model.graph.input)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        ranks = {name: len(shape) for name, shape in shapes.items()}
        norms = [node for node in edit.model.graph.node if node.op_type == "InstanceNormalization"]
        chosen = [node for node in norms if ranks.get(node.input[0]) in (3, 4)]
        index = GraphIndex(edit.model.graph)
        sums = {node.output[0]: axis for node in edit.model.graph.node if (axis := _summed(index, node, shapes))}
        for node in chosen:
            rank = ranks[node.input[0]]
            _write_out(edit, node, rank, _grouped(index, node, ranks) if rank == 3 else None)
        for name, over in sums.items():
            _add_up(edit, index, index.producer[name], over)
        products = {name: both for name in index.producer if (both := _multiplied(index, name, shapes))}
        for name, (left, right) in products.items():
            edit.redirect(name, product_over_rows(edit, left, right, ranks[left], f"{name}/steady"))
        if not chosen and not sums and not products:
            return PassResult(model, False, ("no InstanceNormalization and no sum over pixels was found",))
        edit.drop_unused()
        told = [f"{len(chosen)} of {len(norms)} instance norms"] if norms else []
        told += [f"{len(sums)} sums over pixels"] if sums else []
        told += [f"{len(products)} products over pixels"] if products else []
        return PassResult(edit.model, True, (f"{' and '.join(told)} written out",))


def _summed(index: GraphIndex, node: NodeProto, shapes: Mapping[str, list[int]]) -> list[int] | None:
    """The shape of what a node adds up over pixels (0: any length); None where it is something else."""
    if node.op_type not in _SUMS or not (shape := shapes.get(node.input[0])):
        return None
    rank = len(shape)
    if node.op_type == "GlobalAveragePool":
        return shape if rank == 4 else None
    if len(node.input) < 2 or (axes := index.integers(node.input[1])) is None:
        return None
    over = sorted(axis % rank for axis in axes)
    rows = over == [rank - 1] and rank >= 3 and not 0 < shape[-1] < _LEAST
    return shape if rows or (rank == 4 and over == [2, 3]) else None


def _multiplied(index: GraphIndex, name: str, shapes: Mapping[str, list[int]]) -> tuple[str, str] | None:
    """The two factors [..., m, N] and [..., n, N] of a product over N pixels; None where a value is none."""
    node = index.producer[name]
    turned = index.producer.get(node.input[1]) if node.op_type == "MatMul" else None
    if turned is None or turned.op_type != "Transpose":
        return None
    left, right = node.input[0], turned.input[0]
    shape, other = shapes.get(left, []), shapes.get(right, [])
    rank = len(shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    perm = next((list(a.ints) for a in turned.attribute if a.name == "perm"), [])
    if rank < 3 or len(other) != rank or perm != swapped or shape[:-2] != other[:-2]:
        return None
    long = shape[-1] == other[-1] and not 0 < shape[-1] < _LEAST
    return (left, right) if long and shape[-2] and other[-2] else None


def _add_up(edit: GraphEdit, index: GraphIndex, node: NodeProto, shape: list[int]) -> None:
    """Let the users of a sum over pixels read one that is made of products."""
    source, name, kind, rank = node.input[0], node.output[0], node.op_type, len(shape)
    maps = kind == "GlobalAveragePool" or len(index.integers(node.input[1]) or []) == 2
    squared = kind in ("ReduceL2", "ReduceSumSquare")
    added = edit.node("Mul", [source, source], f"{name}/square") if squared else source
    hint = f"{name}/sum"
    made = sum_over_map(edit, added, hint) if maps else sum_over_rows(edit, added, rank, hint)
    if kind == "ReduceL2":
        made = edit.node("Sqrt", [made], f"{name}/root")
    if kind in ("ReduceMean", "GlobalAveragePool"):
        size = edit.node("Shape", [source], f"{name}/size", start=2 if maps else rank - 1, end=rank)
        number = edit.node("Cast", [edit.node("ReduceProd", [size], f"{name}/pixels")], f"{name}/number",
                           to=TensorProto.FLOAT)  # fmt: skip
        made = edit.node("Div", [made, number], f"{name}/share")
    if kind != "GlobalAveragePool" and not index.attribute(node, "keepdims", 1):
        axes = edit.constant([2, 3] if maps else [rank - 1], f"{name}/axes", np.int64)
        made = edit.node("Squeeze", [made, axes], f"{name}/squeezed")
    edit.redirect(name, made)


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
