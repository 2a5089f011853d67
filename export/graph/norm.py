"""Pools of a map in plain operators: sums that stay exact, and InstanceNormalization of a mean and a variance."""

from __future__ import annotations

import numpy as np
import onnx

from clusir.export.graph.edit import GraphEdit

__all__ = ["sum_over_map", "sum_over_rows", "write_norm"]

_ROW = 256  # numbers that one product adds up


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
    count = edit.node("Shape", [source], f"{name}/count", start=rank - 1, end=rank)
    row = edit.constant([_ROW], f"{name}/row", np.int64)
    short = edit.node("Mod", [edit.node("Neg", [count], f"{name}/less"), row], f"{name}/short")
    none = edit.constant([0] * (2 * rank - 1), f"{name}/none", np.int64)
    pads = edit.node("Concat", [none, short], f"{name}/pads", axis=0)
    folded = edit.reshape(
        edit.node("Pad", [source, pads], f"{name}/filled"), [*[0] * (rank - 1), -1, _ROW], f"{name}/map"
    )
    rows = edit.node("MatMul", [folded, edit.constant(np.ones((_ROW, 1)), f"{name}/ones")], f"{name}/rows")
    one = edit.constant([1], f"{name}/one", np.int64)
    lines = edit.node("Shape", [rows], f"{name}/lines", start=rank - 1, end=rank)
    shape = edit.node("Concat", [one, lines], f"{name}/shape", axis=0)
    ones = edit.node("Expand", [edit.constant(1.0, f"{name}/number"), shape], f"{name}/all")
    return edit.reshape(edit.node("MatMul", [ones, rows], f"{name}/total"), [*[0] * (rank - 1), 1], name)
