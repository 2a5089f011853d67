"""torch.fft as real MatMuls, at the level of the traced program.

Every torch.fft call decomposes to ``aten._fft_r2c``, ``_fft_c2r`` or ``_fft_c2c`` (``s=`` becomes pads and slices in
front of them). :func:`translation_table` gives torch.onnx.export one function for each. A complex tensor is carried as
reals with a last axis of 2, as torch's exporter does. A length known at export becomes a constant matrix; a dynamic one
is built in the graph from Range, with the product k*n reduced modulo N in integers before cos and sin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export import dft
from clusir.export.torch_registry import takes_complex, teach_registry

__all__ = ["FORMS", "Form", "translation_table"]

Form = Literal["auto", "matmul", "op"]
FORMS: tuple[Form, ...] = ("auto", "matmul", "op")

# A value of the graph under construction. torch hands over its own subclass of ir.Value; onnxscript's operators take
# and return it.
Value = Any


def translation_table(form: Form = "auto") -> dict[Any, Callable[..., Any]]:
    """The ``custom_translation_table=`` of ``torch.onnx.export(..., dynamo=True, opset_version=18)``.

    ``matmul``: each axis is one MatMul with its whole matrix. ``auto``: the cheapest form for each call site. ``op``:
    torch's own lowering to the ONNX DFT operator (an empty table). Raises UsageError for another form.
    """
    if form not in FORMS:
        raise UsageError(f"DFT form {form!r} is not one of {', '.join(FORMS)}; use --dft auto")
    if form == "op":
        return {}
    teach_registry()
    aten = torch.ops.aten
    return {
        aten._fft_r2c.default: _r2c,
        aten._fft_c2r.default: takes_complex(_c2r),
        aten._fft_c2c.default: takes_complex(_c2c),
        aten.constant_pad_nd.default: takes_complex(_pad),  # what s= becomes in front of an inverse transform
    }


# onnxscript reads the annotations of a translation function to tell operands from attributes, hence Sequence[int], int
# and bool for the attributes, as in torch's own library.
def _r2c(self: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    """Tensor self, int[] dim, int normalization, bool onesided: real [...] -> [..., 2]; the last dim is halved."""
    rank = len(self.shape)
    axes = [d % rank for d in dim]
    value = _real_to_complex(self, axes[-1], normalization, onesided, rank)
    for axis in reversed(axes[:-1]):
        value = _complex_to_complex(value, axis, normalization, False, rank, self.shape[axis], self.dtype)
    return value


def _c2c(self: Value, dim: Sequence[int], normalization: int, forward: bool) -> Value:
    """Tensor self, int[] dim, int normalization, bool forward: [..., 2] -> [..., 2]."""
    rank = len(self.shape) - 1
    value = self
    for axis in reversed([d % rank for d in dim]):
        value = _complex_to_complex(value, axis, normalization, not forward, rank, self.shape[axis], self.dtype)
    return value


def _c2r(self: Value, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    """Tensor self, int[] dim, int normalization, SymInt last_dim_size: [..., 2] -> real; last dim is the one-sided."""
    rank = len(self.shape) - 1
    axes = [d % rank for d in dim]
    value = self
    for axis in axes[:-1]:
        value = _complex_to_complex(value, axis, normalization, True, rank, self.shape[axis], self.dtype)
    return _complex_to_real(value, axes[-1], normalization, last_dim_size, rank, self.dtype)


def _pad(self: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    """Tensor self, SymInt[] pad, Scalar value: zero-pads a complex tensor; pad counts from the last axis, in pairs."""
    if value != 0:
        raise UnsupportedModelError(f"a complex tensor is padded with {value}; only 0 can be lowered: pad with zeros")
    rank = len(self.shape) - 1
    befores, afters = [_int([0])] * (rank + 1), [_int([0])] * (rank + 1)
    for i in range(len(pad) // 2):
        axis = rank - 1 - i
        befores[axis], afters[axis] = (
            _int([p]) if isinstance(p, int) else op.Reshape(p, [1]) for p in pad[2 * i : 2 * i + 2]
        )
    return op.Pad(self, op.Concat(*befores, *afters, axis=0), _constant(np.array(0.0), self.dtype))


def _real_to_complex(value: Value, axis: int, mode: int, onesided: bool, rank: int) -> Value:
    dtype, length = value.dtype, value.shape[axis]
    order = _axis_last(axis, rank)
    if isinstance(length, int):
        bins = dft.half_bins(length) if onesided else length
        matrix = _constant(dft.real_forward(length, bins, dft.norm_scale(mode, length)), dtype)
    else:
        n = _length(value, axis)
        k = _dynamic_bins(n) if onesided else n
        table_cos, table_sin = _dynamic_cos_sin(n, k, n, mode, dtype)
        # [n, k, 2] -> [n, 2k]
        pair = op.Concat(op.Unsqueeze(table_cos, [2]), op.Unsqueeze(op.Neg(table_sin), [2]), axis=2)
        matrix = op.Reshape(pair, [0, -1])
    value = op.MatMul(_transpose(value, order), matrix)
    value = _split_pairs(value, rank)
    return _transpose(value, _back(order, rank))


def _complex_to_complex(value: Value, axis: int, mode: int, inverse: bool, rank: int, length: Any, dtype: Any) -> Value:
    order = _axis_last(axis, rank)
    if isinstance(length, int):
        matrix = _constant(dft.complex_matrix(length, inverse, dft.norm_scale(mode, length)), dtype)
    else:
        n = _length(value, axis)
        table_cos, table_sin = _dynamic_cos_sin(n, n, n, mode, dtype)
        sine, minus = (table_sin, op.Neg(table_sin)) if inverse else (op.Neg(table_sin), table_sin)
        # [n, 2, n, 2] -> [2n, 2n]
        from_re = op.Concat(op.Unsqueeze(table_cos, [1, 3]), op.Unsqueeze(sine, [1, 3]), axis=3)
        from_im = op.Concat(op.Unsqueeze(minus, [1, 3]), op.Unsqueeze(table_cos, [1, 3]), axis=3)
        double = op.Mul(n, _int(2))
        shape = op.Concat(op.Unsqueeze(double, [0]), op.Unsqueeze(double, [0]), axis=0)
        matrix = op.Reshape(op.Concat(from_re, from_im, axis=1), shape)
    value = _join_pairs(_transpose(value, [*order, rank]), rank)
    value = _split_pairs(op.MatMul(value, matrix), rank)
    return _transpose(value, _back(order, rank))


def _complex_to_real(value: Value, axis: int, mode: int, length: Any, rank: int, dtype: Any) -> Value:
    order = _axis_last(axis, rank)
    if isinstance(length, int):
        matrix = _constant(dft.real_inverse(length, dft.norm_scale(mode, length)), dtype)
    else:
        n = op.Squeeze(length) if length.shape is not None and len(length.shape) else length
        bins = _dynamic_bins(n)
        table_cos, table_sin = _dynamic_cos_sin(bins, n, n, mode, dtype)
        # Bins other than 0 and n/2 stand for their mirror image too.
        k = op.Range(_int(0), bins, _int(1))
        self_mirrored = op.Equal(op.Mod(op.Mul(k, _int(2)), n), _int(0))
        weight = op.Where(self_mirrored, _constant(np.array(1.0), dtype), _constant(np.array(2.0), dtype))
        weight = op.Unsqueeze(weight, [1])
        pair = op.Concat(
            op.Unsqueeze(op.Mul(table_cos, weight), [1]), op.Unsqueeze(op.Neg(op.Mul(table_sin, weight)), [1]), axis=1
        )
        matrix = op.Reshape(pair, op.Concat(_int([-1]), op.Reshape(n, [1]), axis=0))
    value = op.MatMul(_join_pairs(_transpose(value, [*order, rank]), rank), matrix)
    back = [order.index(a) for a in range(rank)]
    return _transpose(value, back)


def _dynamic_cos_sin(rows: Value, columns: Value, n: Value, mode: int, dtype: Any) -> tuple[Value, Value]:
    """cos and sin of 2 pi r c / n times the scale, built in the graph from int64 scalars."""
    zero, one = _int(0), _int(1)
    product = op.Mul(op.Unsqueeze(op.Range(zero, rows, one), [1]), op.Unsqueeze(op.Range(zero, columns, one), [0]))
    # Centred modulo: angles within half a turn have the smallest rounding error in float32.
    half = op.Div(n, _int(2))
    turn = op.Sub(op.Mod(op.Add(product, half), n), half)
    length = op.Cast(n, to=dtype)
    angle = op.Div(op.Mul(op.Cast(turn, to=dtype), _constant(np.array(2 * np.pi), dtype)), length)
    table_cos, table_sin = op.Cos(angle), op.Sin(angle)
    if mode == 0:
        return table_cos, table_sin
    divisor = op.Sqrt(length) if mode == 1 else length
    return op.Div(table_cos, divisor), op.Div(table_sin, divisor)


def _dynamic_bins(n: Value) -> Value:
    return op.Add(op.Div(n, _int(2)), _int(1))


def _length(value: Value, axis: int) -> Value:
    """The length of an axis as an int64 scalar."""
    return op.Squeeze(op.Shape(value, start=axis, end=axis + 1), [0])


def _constant(array: Any, dtype: Any) -> Value:
    return op.Constant(value=ir.tensor(np.asarray(array).astype(dtype.numpy())))


def _int(value: int | list[int]) -> Value:
    return op.Constant(value=ir.tensor(np.array(value, np.int64)))


def _axis_last(axis: int, rank: int) -> list[int]:
    return [a for a in range(rank) if a != axis] + [axis]


def _back(order: list[int], rank: int) -> list[int]:
    """The permutation that undoes ``order`` on a value with the pair axis behind."""
    return [*(order.index(a) for a in range(rank)), rank]


def _transpose(value: Value, order: list[int]) -> Value:
    return value if order == sorted(order) else op.Transpose(value, perm=order)


def _join_pairs(value: Value, rank: int) -> Value:
    """[..., K, 2] -> [..., 2K], a view."""
    return op.Reshape(value, _int([0] * (rank - 1) + [-1]))


def _split_pairs(value: Value, rank: int) -> Value:
    """[..., 2K] -> [..., K, 2], a view."""
    return op.Reshape(value, _int([0] * (rank - 1) + [-1, 2]))
