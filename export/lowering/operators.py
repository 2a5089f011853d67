"""ONNX forms of ATen operators that torch's exporter has none for, or only for some arguments.

Functions of ``custom_translation_table`` of ``torch.onnx.export``; onnxscript reads their annotations to tell operands
from attributes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

import clusir.export.lowering.whole  # noqa: F401 - registers clusir::pad_whole
from clusir.export.lowering.matrices import Value, constant, integers, length_of
from clusir.export.lowering.quotient import quotient_translation
from clusir.export.lowering.recurrent import recurrent_translation
from clusir.export.lowering.scan import scan_translation

__all__ = ["floored_divisions", "operator_translations", "plain_scalars"]

_ATEN = torch.ops.aten


_BOUNDED = {getattr(_ATEN, name).default for name in ("clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_")}


def plain_scalars(program: torch.export.ExportedProgram) -> None:
    """Bounds of ``clamp`` as floats where the tensor is floating: torch takes an int beside a float, ONNX does not."""
    for node in program.graph.nodes:
        if node.target in _BOUNDED:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                node.args = tuple(float(a) if type(a) is int else a for a in node.args)
                node.kwargs = {k: float(v) if type(v) is int else v for k, v in node.kwargs.items()}


def floored_divisions(program: torch.export.ExportedProgram) -> None:
    """``-h // 8`` rounded down, as Python rounds: ONNX divides towards zero, and ``-(-h // 8)`` would not round up."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not operator.floordiv or not isinstance(node.args[0], torch.fx.Node):
            continue
        size, divisor = node.args
        value = size.meta.get("val")
        if not isinstance(value, torch.SymInt) or value.node.shape_env.bound_sympy(value.node.expr).lower >= 0:
            continue
        by = divisor.meta["val"] if isinstance(divisor, torch.fx.Node) else divisor
        with graph.inserting_before(node):
            rest = graph.call_function(operator.mod, (size, divisor))
            whole = graph.call_function(operator.sub, (size, rest))
        rest.meta["val"] = value % by
        whole.meta["val"] = value - rest.meta["val"]
        node.args = (whole, divisor)


def _sorted(self: Value, dim: int, descending: bool) -> tuple[Value, Value]:
    """All values in order and where they were; equal ones by the lowest index, as a stable sort has them."""
    axis = dim % max(len(self.shape), 1)
    count = op.Shape(self, start=axis, end=axis + 1)
    length = length_of(self, axis)
    length = integers(length) if isinstance(length, int) else length
    shape = integers([-1 if a == axis else 1 for a in range(len(self.shape))])
    # Runtimes break ties as they like: a second order is over whole numbers that are all different.
    if not self.dtype.is_integer():
        values, found = op.TopK(self, count, axis=axis, largest=int(descending), sorted=1)
        before, behind = (
            op.Slice(values, integers([first]), integers([last]), integers([axis]))
            for first, last in ((0, -1), (1, 2**31 - 1))
        )
        apart = op.Cast(op.Not(op.Equal(before, behind)), to=ir.DataType.INT64)
        pads = [0] * (2 * len(self.shape))
        pads[axis] = 1
        run = op.CumSum(op.Pad(apart, integers(pads)), integers(axis))
        run = op.ScatterElements(op.Mul(found, integers([0])), found, run, axis=axis)  # where each value stood
        place = op.Reshape(op.Range(integers(0), length, integers(1)), shape)
        return values, _stable_order(run, place, length, count, axis)
    place = op.Reshape(op.Range(integers(0), length, integers(1)), shape)
    place = op.Neg(place) if descending else place
    key = op.Add(op.Mul(op.Cast(self, to=ir.DataType.INT64), length), place)
    _, indices = op.TopK(key, count, axis=axis, largest=int(descending), sorted=1)
    return op.GatherElements(self, indices, axis=axis), indices


def _stable_order(number: Value, place: Value, length: Value, count: Value, axis: int) -> Value:
    """Where whole numbers below ``length`` are, smallest first, equal ones as they stand.

    By two digits, each made different from others by its place: OpenVINO compares 32 bits of an int64.
    """
    base = op.Div(integers([2**30]), op.Reshape(length, integers([1])))

    def order(digit: Value) -> Value:
        return op.TopK(op.Add(op.Mul(digit, length), place), count, axis=axis, largest=0, sorted=1)[1]

    first = order(op.Mod(number, base))
    second = order(op.GatherElements(op.Div(number, base), first, axis=axis))
    return op.GatherElements(first, second, axis=axis)


def _sort(self: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    return _sorted(self, dim, descending)


def _sort_stable(self: Value, stable: bool = False, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    return _sorted(self, dim, descending)


def _argsort(self: Value, dim: int = -1, descending: bool = False) -> Value:
    """argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor"""
    return _sorted(self, dim, descending)[1]


def _argsort_stable(self: Value, stable: bool = False, dim: int = -1, descending: bool = False) -> Value:
    """argsort.stable(Tensor self, *, bool stable, int dim=-1, bool descending=False) -> Tensor"""
    return _sorted(self, dim, descending)[1]


def _kth(self: Value, count: Value, axis: int, keepdim: bool) -> tuple[Value, Value]:
    """The ``count``-th smallest value along an axis."""
    values, indices = op.TopK(self, count, axis=axis, largest=0, sorted=1)
    last = [op.Slice(v, integers([-1]), integers([2**31 - 1]), integers([axis])) for v in (values, indices)]
    if not keepdim:
        last = [op.Squeeze(v, integers([axis])) for v in last]
    return last[0], last[1]


def _median_dim(self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    """median.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor, Tensor): the lower of two middles"""
    axis = dim % len(self.shape)
    count = op.Shape(self, start=axis, end=axis + 1)
    return _kth(self, op.Div(op.Add(count, integers([1])), integers([2])), axis, keepdim)


def _median(self: Value) -> Value:
    """median(Tensor self) -> Tensor"""
    return _median_dim(op.Reshape(self, integers([-1])), 0, False)[0]


def _kthvalue(self: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """kthvalue(Tensor self, int k, int dim=-1, bool keepdim=False) -> (Tensor, Tensor)"""
    return _kth(self, integers([k]), dim % len(self.shape), keepdim)


def _attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """scaled_dot_product_attention of any rank: [..., L, E], [..., S, E], [..., S, V] -> [..., L, V]"""
    rank = len(query.shape)
    width = query.shape[rank - 1]
    if scale is None and isinstance(width, int):
        factor = constant(float(width) ** -0.5, query.dtype)
    elif scale is None:
        length = op.Cast(op.Shape(query, start=rank - 1, end=rank), to=query.dtype)
        factor = op.Reciprocal(op.Sqrt(length))
    else:
        factor = constant(scale, query.dtype)
    perm = [*range(len(key.shape) - 2), len(key.shape) - 1, len(key.shape) - 2]
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=perm))
    least = constant(np.finfo(query.dtype.numpy()).min, query.dtype)
    if is_causal:
        rows, columns = (
            op.Range(integers(0), op.Squeeze(op.Shape(t, start=r - 2, end=r - 1), [0]), integers(1))
            for t, r in ((query, rank), (key, len(key.shape)))
        )
        scores = op.Where(op.Greater(op.Unsqueeze(columns, [0]), op.Unsqueeze(rows, [1])), least, scores)
    if attn_mask is not None:
        if attn_mask.dtype == ir.DataType.BOOL:
            scores = op.Where(attn_mask, scores, least)
        else:
            scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _round(x: Value) -> Value:
    """round(SymFloat x) -> SymInt, half to even"""
    return op.Cast(op.Round(x), to=ir.DataType.INT64)


def _sym_sqrt(x: Value) -> Value:
    """sym_sqrt(SymFloat x) -> SymFloat"""
    return op.Sqrt(x)


def _prod(self: Value, dim: int, keepdim: bool = False) -> Value:
    """prod.dim_int(Tensor self, int dim, bool keepdim=False) -> Tensor"""
    return op.ReduceProd(self, integers([dim]), keepdims=int(keepdim))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _pad_whole(self: Value, pads: Sequence[int], mode: str, value: float, factors: Sequence[int]) -> Value:
    """clusir::pad_whole(Tensor x, SymInt[] pads, str mode, float value, SymInt[] factors) -> Tensor"""
    if all(isinstance(p, int) and p == 0 for p in pads):
        return op.Identity(self)
    rank = len(self.shape)
    amounts: list[Value] = [integers([0])] * (2 * rank)
    for number, amount in enumerate(pads):
        axis = rank - 1 - number // 2
        amounts[axis + rank * (number % 2)] = (
            integers([amount]) if isinstance(amount, int) else op.Reshape(amount, integers([1]))
        )
    fill = constant(value, self.dtype) if mode == "constant" else None
    return op.Pad(self, op.Concat(*amounts, axis=0), fill, mode=_PAD_MODES[mode])


def operator_translations() -> dict[Any, Callable[..., Any]]:
    """ATen operator -> its ONNX form, for ``custom_translation_table``."""
    return {
        _ATEN.sort.default: _sort,
        _ATEN.sort.stable: _sort_stable,
        _ATEN.argsort.default: _argsort,
        _ATEN.argsort.stable: _argsort_stable,
        _ATEN.median.default: _median,
        _ATEN.median.dim: _median_dim,
        _ATEN.prod.dim_int: _prod,
        _ATEN.kthvalue.default: _kthvalue,
        _ATEN.scaled_dot_product_attention.default: _attention,
        torch.ops.clusir.pad_whole.default: _pad_whole,
        **quotient_translation(),
        **recurrent_translation(),
        **scan_translation(),
        round: _round,
        torch._sym_sqrt: _sym_sqrt,  # type: ignore[attr-defined]
    }
