"""torch.fft as real MatMuls, at the level of the traced program.

Every torch.fft call decomposes to ``aten._fft_r2c``, ``_fft_c2r`` or ``_fft_c2c`` (``s=`` becomes pads and slices in
front of them). :func:`translation_table` gives torch.onnx.export one function for each. A complex tensor is carried as
reals with a last axis of 2, as torch's exporter does.

A transform over the last two axes of a real tensor keeps real arithmetic as long as it can: with C and S the cosine and
sine rows of the height, bins +k and -k are P + Q and P - Q, where P is the row transform of C x and Q that of S x times
-i. That is two thirds of the arithmetic of "rows, then complex columns", and no transpose. The inverse runs backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from onnxscript import opset18 as op

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.lowering import dft, matrices
from clusir.export.lowering.matrices import Value, constant, integers, length_of
from clusir.export.lowering.registry import takes_complex

__all__ = ["FORMS", "Form", "translation_table"]

Form = Literal["auto", "matmul", "op"]
FORMS: tuple[Form, ...] = ("auto", "matmul", "op")


def translation_table(form: Form = "auto") -> dict[Any, Callable[..., Any]]:
    """The ``custom_translation_table=`` of ``torch.onnx.export(..., dynamo=True, opset_version=18)``, which has to be
    called inside :func:`clusir.export.lowering.registry.taught_registry`.

    ``matmul``: one MatMul with the whole matrix for each axis in turn. ``auto``: the cheapest form of each call site.
    ``op``: torch's own lowering to the ONNX DFT operator (an empty table). Raises UsageError for another form.
    """
    if form not in FORMS:
        raise UsageError(f"DFT form {form!r} is not one of {', '.join(FORMS)}; use --dft auto")
    if form == "op":
        return {}
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten._fft_r2c.default: _r2c if form == "auto" else _r2c_by_axis,
        aten._fft_c2r.default: takes_complex(_c2r if form == "auto" else _c2r_by_axis),
        aten._fft_c2c.default: takes_complex(_c2c),
        aten.constant_pad_nd.default: takes_complex(_pad),  # what s= becomes in front of an inverse transform
    }
    if form == "auto":
        table[aten.mul.Tensor] = takes_complex(_multiply)
    return table


# Patches of up to 10x10: separable products of such matrices are too small to run near the peak.
_PATCH = 100


# onnxscript reads the annotations of a translation function to tell operands from attributes, hence Sequence[int], int
# and bool for the attributes, as in torch's own library.
def _r2c(self: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    """Tensor self, int[] dim, int normalization, bool onesided: real [...] -> [..., 2]; the last dim is halved."""
    rank = len(self.shape)
    axes = [d % rank for d in dim]
    if not onesided or axes[-2:] != [rank - 2, rank - 1]:
        return _r2c_by_axis(self, dim, normalization, onesided)
    value = _real_plane(self, normalization, rank)
    for axis in reversed(axes[:-2]):
        value = _complex_axis(value, axis, normalization, False, rank, self.shape[axis], self.dtype)
    return value


def _r2c_by_axis(self: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    """As :func:`_r2c`, one axis after the other."""
    rank = len(self.shape)
    axes = [d % rank for d in dim]
    value = _real_axis(self, axes[-1], normalization, onesided, rank)
    for axis in reversed(axes[:-1]):
        value = _complex_axis(value, axis, normalization, False, rank, self.shape[axis], self.dtype)
    return value


def _c2c(self: Value, dim: Sequence[int], normalization: int, forward: bool) -> Value:
    """Tensor self, int[] dim, int normalization, bool forward: [..., 2] -> [..., 2]."""
    rank = len(self.shape) - 1
    value = self
    for axis in reversed([d % rank for d in dim]):
        value = _complex_axis(value, axis, normalization, not forward, rank, self.shape[axis], self.dtype)
    return value


def _c2r(self: Value, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    """Tensor self, int[] dim, int normalization, SymInt last_dim_size: [..., 2] -> real; last dim is the one-sided."""
    rank = len(self.shape) - 1
    axes = [d % rank for d in dim]
    if axes[-2:] != [rank - 2, rank - 1]:
        return _c2r_by_axis(self, dim, normalization, last_dim_size)
    value = self
    for axis in axes[:-2]:
        value = _complex_axis(value, axis, normalization, True, rank, self.shape[axis], self.dtype)
    return _plane_to_real(value, normalization, self.shape[rank - 2], last_dim_size, rank, self.dtype)


def _c2r_by_axis(self: Value, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    """As :func:`_c2r`, one axis after the other."""
    rank = len(self.shape) - 1
    axes = [d % rank for d in dim]
    value = self
    for axis in axes[:-1]:
        value = _complex_axis(value, axis, normalization, True, rank, self.shape[axis], self.dtype)
    return _axis_to_real(value, axes[-1], normalization, last_dim_size, rank, self.dtype)


def _pad(self: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    """Tensor self, SymInt[] pad, Scalar value: zero-pads a complex tensor; pad counts from the last axis, in pairs."""
    if value != 0:
        raise UnsupportedModelError(f"a complex tensor is padded with {value}; only 0 can be lowered: pad with zeros")
    rank = len(self.shape) - 1
    befores, afters = [integers([0])] * (rank + 1), [integers([0])] * (rank + 1)
    for i in range(len(pad) // 2):
        axis = rank - 1 - i
        befores[axis], afters[axis] = (
            integers([p]) if isinstance(p, int) else op.Reshape(p, [1]) for p in pad[2 * i : 2 * i + 2]
        )
    return op.Pad(self, op.Concat(*befores, *afters, axis=0), constant(0.0, self.dtype))


def _multiply(self: Value, other: Value) -> Value:
    """Tensor self, Tensor|Scalar other: a complex product, or a product by a real that was only cast to complex.

    torch.export writes ``spectrum * mask`` as a cast of the real mask to complex; torch's lowering then multiplies by
    the zeros of its imaginary part.
    """
    if isinstance(other, (bool, int, float, complex)):
        if not isinstance(other, complex):
            return op.Mul(self, constant(other, self.dtype))
        other = constant([other.real, other.imag], self.dtype)
    for spectrum, factor in ((self, other), (other, self)):
        real = _real_before_cast(factor)
        if real is not None:
            return op.Mul(spectrum, real)
    re1, im1 = _parts(self)
    re2, im2 = _parts(other)
    real = op.Sub(op.Mul(re1, re2), op.Mul(im1, im2))
    return op.Concat(real, op.Add(op.Mul(re1, im2), op.Mul(im1, re2)), axis=-1)


def _real_before_cast(value: Value) -> Value | None:
    """The [..., 1] real of a value that torch's cast wrote as Concat(Unsqueeze(real, -1), zeros), else None."""
    node = value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    source = node.meta.get("node")
    if source is None or not str(source.target).startswith(("prims.convert_element_type", "aten._to_copy", "aten.to.")):
        return None
    return node.inputs[0]


def _parts(value: Value) -> tuple[Value, Value]:
    real, imaginary = (op.Slice(value, integers([i]), integers([i + 1]), integers([-1])) for i in (0, 1))
    return real, imaginary


def _is_patch(height: Any, width: Any) -> bool:
    """Whether a plane is so small that one product with its whole two-dimensional matrix is the cheapest form."""
    return isinstance(height, int) and isinstance(width, int) and height * width <= _PATCH


def _real_plane(value: Value, mode: int, rank: int) -> Value:
    """rfft2 over the last two axes: real [..., H, W] -> [..., H, W//2+1, 2]."""
    dtype = value.dtype
    height, width = length_of(value, rank - 2), length_of(value, rank - 1)
    if _is_patch(height, width):
        scale = dft.norm_scale(mode, height * width)
        flat = op.Reshape(value, integers([0] * (rank - 2) + [-1]))
        bins = op.MatMul(flat, constant(dft.plane_forward(height, width, scale), dtype))
        return op.Reshape(bins, integers([0] * (rank - 2) + [height, dft.half_bins(width), 2]))
    cosines, sines = matrices.row_tables(height, mode, dtype, inverse=False)
    even = op.MatMul(op.MatMul(cosines, value), matrices.real_forward(width, True, mode, dtype))
    odd = op.MatMul(op.MatMul(sines, value), matrices.real_forward(width, True, mode, dtype, turned=True))
    above, below = op.Add(even, odd), op.Sub(even, odd)
    # Rows H//2+1 .. H-1 are the bins -k: of "below", rows (H-1)//2 down to 1.
    if isinstance(height, int):
        start = integers([(height - 1) // 2])
    else:
        start = op.Reshape(op.Div(op.Sub(height, integers(1)), integers(2)), [1])
    below = op.Slice(below, start, integers([0]), integers([rank - 2]), integers([-1]))
    return _split_pairs(op.Concat(above, below, axis=rank - 2), rank)


def _plane_to_real(value: Value, mode: int, height: Any, width: Any, rank: int, dtype: Any) -> Value:
    """irfft2 over the last two axes: [..., H, W//2+1, 2] -> real [..., H, W]."""
    height, width = length_of(value, rank - 2, height), _scalar(width)
    if _is_patch(height, width):
        scale = dft.norm_scale(mode, height * width)
        flat = op.Reshape(value, integers([0] * (rank - 2) + [-1]))
        plane = op.MatMul(flat, constant(dft.plane_inverse(height, width, scale), dtype))
        return op.Reshape(plane, integers([0] * (rank - 2) + [height, width]))
    joined = _join_pairs(value, rank)
    ahead, mirrored = matrices.mirror_rows(height)
    plus, minus = op.Gather(joined, ahead, axis=rank - 2), op.Gather(joined, mirrored, axis=rank - 2)
    cosines, sines = matrices.row_tables(height, mode, dtype, inverse=True)
    even = op.MatMul(op.Add(plus, minus), matrices.real_inverse(width, mode, dtype))
    odd = op.MatMul(op.Sub(plus, minus), matrices.real_inverse(width, mode, dtype, turned=True))
    return op.Add(op.MatMul(cosines, even), op.MatMul(sines, odd))


def _real_axis(value: Value, axis: int, mode: int, onesided: bool, rank: int) -> Value:
    order = _axis_last(axis, rank)
    matrix = matrices.real_forward(length_of(value, axis), onesided, mode, value.dtype)
    value = _split_pairs(op.MatMul(_transpose(value, order), matrix), rank)
    return _transpose(value, _back(order, rank))


def _complex_axis(value: Value, axis: int, mode: int, inverse: bool, rank: int, length: Any, dtype: Any) -> Value:
    order = _axis_last(axis, rank)
    matrix = matrices.complex_matrix(length_of(value, axis, length), inverse, mode, dtype)
    value = _join_pairs(_transpose(value, [*order, rank]), rank)
    value = _split_pairs(op.MatMul(value, matrix), rank)
    return _transpose(value, _back(order, rank))


def _axis_to_real(value: Value, axis: int, mode: int, length: Any, rank: int, dtype: Any) -> Value:
    order = _axis_last(axis, rank)
    matrix = matrices.real_inverse(_scalar(length), mode, dtype)
    value = op.MatMul(_join_pairs(_transpose(value, [*order, rank]), rank), matrix)
    return _transpose(value, [order.index(a) for a in range(rank)])


def _scalar(length: Any) -> Any:
    """A SymInt arrives as a value of shape [] or [1]."""
    return length if isinstance(length, int) else op.Reshape(length, integers([]))


def _axis_last(axis: int, rank: int) -> list[int]:
    return [a for a in range(rank) if a != axis] + [axis]


def _back(order: list[int], rank: int) -> list[int]:
    """The permutation that undoes ``order`` on a value with the pair axis behind."""
    return [*(order.index(a) for a in range(rank)), rank]


def _transpose(value: Value, order: list[int]) -> Value:
    return value if order == sorted(order) else op.Transpose(value, perm=order)


def _join_pairs(value: Value, rank: int) -> Value:
    """[..., K, 2] -> [..., 2K], a view."""
    return op.Reshape(value, integers([0] * (rank - 1) + [-1]))


def _split_pairs(value: Value, rank: int) -> Value:
    """[..., 2K] -> [..., K, 2], a view."""
    return op.Reshape(value, integers([0] * (rank - 1) + [-1, 2]))
