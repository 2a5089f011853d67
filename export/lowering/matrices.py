"""Transform matrices as values of the graph under construction: constants where the length is known, else built there.

Each function takes the length as an int, or as an int64 scalar value of the graph. A matrix built in the graph comes
from Range, with k*n reduced modulo N in integers and centred, so that float32 angles stay within half a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op

from clusir.export.lowering import dft

__all__ = [
    "Length",
    "Value",
    "bins_of",
    "complex_matrix",
    "constant",
    "integers",
    "length_of",
    "mirror_rows",
    "real_forward",
    "real_inverse",
    "row_tables",
]

# torch hands over its own subclass of ir.Value; onnxscript's operators take and return it.
Value = Any
Length = Any


def constant(array: Any, dtype: ir.DataType) -> Value:
    return op.Constant(value=ir.tensor(np.asarray(array).astype(dtype.numpy())))


def integers(value: int | Sequence[int]) -> Value:
    return op.Constant(value=ir.tensor(np.array(value, np.int64)))


def length_of(value: Value, axis: int, known: Length | None = None) -> Length:
    """The length of an axis: an int where the export fixes it, else an int64 scalar value."""
    known = value.shape[axis] if known is None else known
    return known if isinstance(known, int) else op.Squeeze(op.Shape(value, start=axis, end=axis + 1), [0])


def bins_of(n: Length) -> Length:
    return dft.half_bins(n) if isinstance(n, int) else op.Add(op.Div(n, integers(2)), integers(1))


def real_forward(n: Length, onesided: bool, mode: int, dtype: ir.DataType, turned: bool = False) -> Value:
    """[n, 2*bins], interleaved; ``turned`` multiplies the result by -i."""
    if isinstance(n, int):
        matrix = dft.real_forward(n, dft.half_bins(n) if onesided else n, dft.norm_scale(mode, n))
        return constant(dft.times_minus_i(matrix) if turned else matrix, dtype)
    table_cos, table_sin = _tables(n, bins_of(n) if onesided else n, n, mode, dtype)
    real, imaginary = (op.Neg(table_sin), op.Neg(table_cos)) if turned else (table_cos, op.Neg(table_sin))
    return op.Reshape(op.Concat(op.Unsqueeze(real, [2]), op.Unsqueeze(imaginary, [2]), axis=2), integers([0, -1]))


def real_inverse(n: Length, mode: int, dtype: ir.DataType, turned: bool = False) -> Value:
    """[2*bins, n]: one-sided interleaved spectrum to samples; ``turned`` multiplies the spectrum by i first."""
    if isinstance(n, int):
        matrix = dft.real_inverse(n, dft.norm_scale(mode, n))
        if turned:  # (re, im) becomes (-im, re): the real part takes the row of im, the imaginary minus that of re
            pairs = matrix.reshape(-1, 2, n)
            matrix = np.stack([pairs[:, 1], -pairs[:, 0]], axis=1).reshape(matrix.shape)
            # i*X must leave nothing of its own imaginary part at the bins that are real by definition; as in c2r.
        return constant(matrix, dtype)
    bins = bins_of(n)
    table_cos, table_sin = _tables(bins, n, n, mode, dtype)
    # Bins other than 0 and n/2 stand for their mirror image too.
    k = op.Range(integers(0), bins, integers(1))
    alone = op.Equal(op.Mod(op.Mul(k, integers(2)), n), integers(0))
    weight = op.Unsqueeze(op.Where(alone, constant(1.0, dtype), constant(2.0, dtype)), [1])
    table_cos, minus_sin = op.Mul(table_cos, weight), op.Neg(op.Mul(table_sin, weight))
    real, imaginary = (minus_sin, op.Neg(table_cos)) if turned else (table_cos, minus_sin)
    pair = op.Concat(op.Unsqueeze(real, [1]), op.Unsqueeze(imaginary, [1]), axis=1)
    return op.Reshape(pair, op.Concat(integers([-1]), op.Reshape(n, [1]), axis=0))


def complex_matrix(n: Length, inverse: bool, mode: int, dtype: ir.DataType) -> Value:
    """[2n, 2n], interleaved to interleaved."""
    if isinstance(n, int):
        return constant(dft.complex_matrix(n, inverse, dft.norm_scale(mode, n)), dtype)
    table_cos, table_sin = _tables(n, n, n, mode, dtype)
    sine, minus = (table_sin, op.Neg(table_sin)) if inverse else (op.Neg(table_sin), table_sin)
    from_re = op.Concat(op.Unsqueeze(table_cos, [1, 3]), op.Unsqueeze(sine, [1, 3]), axis=3)  # [n, 1, n, 2]
    from_im = op.Concat(op.Unsqueeze(minus, [1, 3]), op.Unsqueeze(table_cos, [1, 3]), axis=3)
    double = op.Reshape(op.Mul(n, integers(2)), [1])
    return op.Reshape(op.Concat(from_re, from_im, axis=1), op.Concat(double, double, axis=0))


def row_tables(n: Length, mode: int, dtype: ir.DataType, inverse: bool) -> tuple[Value, Value]:
    """The real tables of the second axis: (cosines, sines) [bins, n] forward, and their transposes inverse.

    Forward gives sums over n of x cos and x sin. Inverse takes P = F[k] + F[-k] and Q = F[k] - F[-k], where bins 0 and
    n/2 meet themselves and so count half; their sines are zero.
    """
    if isinstance(n, int):
        table_cos, table_sin = dft.cos_sin(dft.half_bins(n), n, n)
        scale = dft.norm_scale(mode, n)
        if not inverse:
            return constant(table_cos * scale, dtype), constant(table_sin * scale, dtype)
        weight = np.where((2 * np.arange(len(table_cos))) % n == 0, 0.5, 1.0)[:, None] * scale
        return constant((table_cos * weight).T, dtype), constant((table_sin * weight).T, dtype)
    bins = bins_of(n)
    if not inverse:
        return _tables(bins, n, n, mode, dtype)
    table_cos, table_sin = _tables(n, bins, n, mode, dtype)
    k = op.Range(integers(0), bins, integers(1))
    alone = op.Equal(op.Mod(op.Mul(k, integers(2)), n), integers(0))
    weight = op.Where(alone, constant(0.5, dtype), constant(1.0, dtype))
    return op.Mul(table_cos, weight), op.Mul(table_sin, weight)


def mirror_rows(n: Length) -> tuple[Value, Value]:
    """Indices [bins] of rows k and -k (modulo n) for k = 0..n//2."""
    if isinstance(n, int):
        k = list(range(dft.half_bins(n)))
        return integers(k), integers([-i % n for i in k])
    rows = op.Range(integers(0), bins_of(n), integers(1))
    return rows, op.Mod(op.Sub(n, rows), n)


def _tables(rows: Length, columns: Length, n: Length, mode: int, dtype: ir.DataType) -> tuple[Value, Value]:
    """cos and sin of 2 pi r c / n times the scale, [rows, columns], from int64 scalars of the graph."""
    zero, one = integers(0), integers(1)
    product = op.Mul(op.Unsqueeze(op.Range(zero, rows, one), [1]), op.Unsqueeze(op.Range(zero, columns, one), [0]))
    half = op.Div(n, integers(2))
    turn = op.Sub(op.Mod(op.Add(product, half), n), half)
    length = op.Cast(n, to=dtype)
    angle = op.Div(op.Mul(op.Cast(turn, to=dtype), constant(2 * np.pi, dtype)), length)
    # The exact zeros of the circle: a bin that is its own mirror image is real, and its phase 0 or pi.
    none = constant(0.0, dtype)
    table_cos = op.Where(op.Equal(op.Abs(op.Mul(turn, integers(4))), n), none, op.Cos(angle))
    table_sin = op.Where(op.Equal(op.Abs(op.Mul(turn, integers(2))), n), none, op.Sin(angle))
    if mode == 0:
        return table_cos, table_sin
    divisor = op.Sqrt(length) if mode == 1 else length
    return op.Div(table_cos, divisor), op.Div(table_sin, divisor)
