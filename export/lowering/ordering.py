"""Sorting and choosing the largest in ONNX, with a rule for equal values: the first of them first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from clusir.export.lowering.matrices import Value, integers, length_of

__all__ = ["ordering_translations"]

_ATEN = torch.ops.aten
# Along an axis as short as that are scores of experts or channels, hardly ever equal.
_ALL_DIFFERENT = 64


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


def _topk(self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, Value]:
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)

    ONNX takes the first of equal values, OpenVINO any of them; along an axis of pixels, where equal ones are common,
    the places are chosen here. Values alone need no choice, and what nobody reads is left out. None at all, which
    OpenVINO takes for every axis of length 0, is a slice of them.
    """
    axis = dim % max(len(self.shape), 1)
    if isinstance(k, int) and k == 0:
        none = op.Slice(self, integers([0]), integers([0]), integers([axis]))
        return none, op.Cast(none, to=ir.DataType.INT64)
    count = integers([k]) if isinstance(k, int) else op.Reshape(k, integers([1]))
    values, indices = op.TopK(self, count, axis=axis, largest=int(largest), sorted=1)
    length = length_of(self, axis)
    if isinstance(length, int) and length <= _ALL_DIFFERENT:
        return values, indices
    edge = op.Slice(values, integers([-1]), integers([2**31 - 1]), integers([axis]))
    better = op.Greater(self, edge) if largest else op.Less(self, edge)
    equal = op.Equal(self, edge)
    better_count, among_equals = (op.Cast(flags, to=ir.DataType.INT64) for flags in (better, equal))
    left = op.Sub(count, op.ReduceSum(better_count, integers([axis]), keepdims=1))
    taken = op.Or(better, op.And(equal, op.LessOrEqual(op.CumSum(among_equals, integers(axis)), left)))
    length = integers(length) if isinstance(length, int) else length
    shape = integers([-1 if a == axis else 1 for a in range(len(self.shape))])
    place = op.Reshape(op.Range(integers(0), length, integers(1)), shape)
    # The places that were taken, as they stand in the tensor, then by value; equal values stay in that order.
    places, _ = op.TopK(op.Where(taken, place, length), count, axis=axis, largest=0, sorted=1)
    chosen = op.GatherElements(self, places, axis=axis)
    kept = k if isinstance(k, int) else None
    chosen.shape = ir.Shape([kept if a == axis else n for a, n in enumerate(self.shape)])
    chosen.type = self.type
    order = _sorted(chosen, axis, largest)[1]
    return values, op.GatherElements(places, order, axis=axis)


def ordering_translations() -> dict[Any, Callable[..., Any]]:
    """ATen operator -> its ONNX form."""
    return {
        _ATEN.sort.default: _sort,
        _ATEN.sort.stable: _sort_stable,
        _ATEN.argsort.default: _argsort,
        _ATEN.argsort.stable: _argsort_stable,
        _ATEN.median.default: _median,
        _ATEN.median.dim: _median_dim,
        _ATEN.kthvalue.default: _kthvalue,
        _ATEN.topk.default: _topk,
    }
