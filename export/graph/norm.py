"""Pools of a map in plain operators: sums and products over pixels that stay exact, and InstanceNormalization of a mean
and a variance."""

from __future__ import annotations

import numpy as np
import onnx

from clusir.export.graph.edit import GraphEdit

__all__ = ["product_over_rows", "sum_over_map", "sum_over_rows", "write_norm"]

_ROW = 256  # numbers that one product adds up
_PART = 64  # of a product of two maps, where it is a quarter of the rounding of 256


def write_norm(edit: GraphEdit, node: onnx.NodeProto, middle: str, variance: str, rank: int) -> None:
    """Let the users of ``node``, an InstanceNormalization of ``rank`` axes, read ``middle / sqrt(variance + epsilon)``
    times its scale plus its bias. ``middle``: the map without its mean, [B, C, ...]; ``variance``: [B, C, 1, ...]."""
    _, scale, bias = node.input
    name = node.output[0]
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    shifted = edit.node("Add", [variance, edit.constant(epsilon, f"{name}/epsilon")], f"{name}/shifted")
    unit = edit.node("Div", [middle, edit.node("Sqrt", [shifted], f"{name}/deviation")], f"{name}/unit")
    shape = [1, -1, *[1] * (rank - 2)]
    scaled = edit.node("Mul", [unit, edit.reshape(scale, shape, f"{name}/scale")], f"{name}/scaled")
    edit.redirect(name, edit.node("Add", [scaled, edit.reshape(bias, shape, f"{name}/bias")], f"{name}/made"))


def sum_over_map(edit: GraphEdit, source: str, name: str) -> str:
    """The sum over height and width of ``source`` [B, C, H, W], as [B, C, 1, 1]: by two products with ones.

    A runtime's ReduceSum adds a map up in order, in float32: of 65,536 equal numbers the sum is off by up to a
    thousandth, a product of 256 times 256 adds in blocks.
    """
    one = edit.constant([1], f"{name}/one", np.int64)
    number = edit.constant(1.0, f"{name}/number")

    def ones(axis: int, row: bool) -> str:
        count = edit.node("Shape", [source], f"{name}/count", start=axis, end=axis + 1)
        shape = edit.node("Concat", [one, count] if row else [count, one], f"{name}/shape", axis=0)
        return edit.node("Expand", [number, shape], f"{name}/ones")

    rows = edit.node("MatMul", [source, ones(3, False)], f"{name}/rows")
    return edit.node("MatMul", [ones(2, True), rows], name)


def sum_over_rows(edit: GraphEdit, source: str, rank: int, name: str) -> str:
    """The sum over the last of ``rank`` axes of ``source``, which stays with length 1: rows of any length are folded to
    256 columns, filled up with zeros, and added up as maps are."""
    folded = _folded(edit, source, rank, _ROW, name)
    rows = edit.node("MatMul", [folded, edit.constant(np.ones((_ROW, 1)), f"{name}/ones")], f"{name}/rows")
    one = edit.constant([1], f"{name}/one", np.int64)
    lines = edit.node("Shape", [rows], f"{name}/lines", start=rank - 1, end=rank)
    shape = edit.node("Concat", [one, lines], f"{name}/shape", axis=0)
    ones = edit.node("Expand", [edit.constant(1.0, f"{name}/number"), shape], f"{name}/all")
    return edit.reshape(edit.node("MatMul", [ones, rows], f"{name}/total"), [*[0] * (rank - 1), 1], name)


def product_over_rows(edit: GraphEdit, left: str, right: str, rank: int, name: str) -> str:
    """``left`` [..., m, N] times the transposed ``right`` [..., n, N], as [..., m, n], by products over 64 of N each.

    A runtime adds up a product over a whole picture in few and long sums: of 11,264 equal numbers it is off by 1e-5,
    which decides what a network that sorts the products takes.
    """
    lead, (rows, lines, row) = list(range(rank - 2)), range(rank - 2, rank + 1)
    first = edit.node("Transpose", [_folded(edit, left, rank, _PART, f"{name}/left")], f"{name}/rows",
                      perm=[*lead, lines, rows, row])  # fmt: skip
    second = edit.node("Transpose", [_folded(edit, right, rank, _PART, f"{name}/right")], f"{name}/columns",
                       perm=[*lead, lines, row, rows])  # fmt: skip
    parts = edit.node("MatMul", [first, second], f"{name}/parts")
    apart = edit.node("Transpose", [parts], f"{name}/apart", perm=[*lead, rank - 1, rank, rank - 2])
    total = sum_over_rows(edit, apart, rank + 1, f"{name}/sum")
    return edit.node("Squeeze", [total, edit.constant([rank], f"{name}/last", np.int64)], name)


def _folded(edit: GraphEdit, source: str, rank: int, length: int, name: str) -> str:
    """The last of ``rank`` axes as two, the second of ``length``, filled up with zeros."""
    count = edit.node("Shape", [source], f"{name}/count", start=rank - 1, end=rank)
    row = edit.constant([length], f"{name}/row", np.int64)
    short = edit.node("Mod", [edit.node("Neg", [count], f"{name}/less"), row], f"{name}/short")
    none = edit.constant([0] * (2 * rank - 1), f"{name}/none", np.int64)
    pads = edit.node("Concat", [none, short], f"{name}/pads", axis=0)
    filled = edit.node("Pad", [source, pads], f"{name}/filled")
    return edit.reshape(filled, [*[0] * (rank - 1), -1, length], f"{name}/map")
