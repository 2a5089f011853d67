"""ONNX forms of ATen operators that torch's exporter has none for, or only for some arguments.

Functions of ``custom_translation_table`` of ``torch.onnx.export``; onnxscript reads their annotations to tell operands
from attributes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

import clusir.export.lowering.whole  # noqa: F401 - registers clusir::pad_whole
from clusir.export.lowering.matrices import Value, constant, integers
from clusir.export.lowering.ordering import ordering_translations
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


def _distances(x1: Value, x2: Value, p: float, compute_mode: int | None = None) -> Value:
    """_cdist_forward(Tensor x1, Tensor x2, float p, int? compute_mode) -> Tensor: [..., P, M], [..., R, M] ->
    [..., P, R], the p-norms of all differences of rows. From 26 rows on torch makes products of those of p = 2."""
    apart = op.Abs(op.Sub(op.Unsqueeze(x1, integers([-2])), op.Unsqueeze(x2, integers([-3]))))
    axis = integers([-1])
    if p == math.inf:
        return op.ReduceMax(apart, axis, keepdims=0)
    if p == 0:
        return op.ReduceSum(op.Cast(op.Cast(apart, to=ir.DataType.BOOL), to=x1.dtype), axis, keepdims=0)
    if p in (1, 2):
        return op.ReduceL1(apart, axis, keepdims=0) if p == 1 else op.ReduceL2(apart, axis, keepdims=0)
    total = op.ReduceSum(op.Pow(apart, constant(p, x1.dtype)), axis, keepdims=0)
    return op.Pow(total, constant(1 / p, x1.dtype))


def _where(condition: Value, self: Any, other: Any) -> Value:
    """where(Tensor condition, Tensor or number self, Tensor or number other) -> Tensor; of masks, which ONNX Runtime
    has no kernel for, in logic"""
    if not all(isinstance(v, bool) or getattr(v, "dtype", None) == ir.DataType.BOOL for v in (self, other)):
        return op.Where(condition, self, other)
    kept, rest = (constant(v, ir.DataType.BOOL) if isinstance(v, bool) else v for v in (self, other))
    return op.Or(op.And(condition, kept), op.And(op.Not(condition), rest))


def _masked_select(self: Value, mask: Value) -> Value:
    """masked_select(Tensor self, Tensor mask) -> Tensor: row by row, both broadcast against each other"""
    values = op.Where(mask, self, self)  # broadcast
    every = op.Reshape(op.Expand(mask, op.Shape(values)), integers([-1]))
    return op.Gather(op.Reshape(values, integers([-1])), op.Squeeze(op.NonZero(every), [0]))


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
        _ATEN.prod.dim_int: _prod,
        _ATEN._cdist_forward.default: _distances,
        _ATEN.masked_select.default: _masked_select,
        **{getattr(_ATEN.where, kind): _where for kind in ("self", "Scalar", "ScalarSelf", "ScalarOther")},
        _ATEN.scaled_dot_product_attention.default: _attention,
        torch.ops.clusir.pad_whole.default: _pad_whole,
        **ordering_translations(),
        **quotient_translation(),
        **recurrent_translation(),
        **scan_translation(),
        round: _round,
        torch._sym_sqrt: _sym_sqrt,  # type: ignore[attr-defined]
    }
