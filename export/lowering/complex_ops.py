"""Which real form stands for which ATen operator on complex tensors; products, constants and casts.

``HANDLERS`` maps a name to a function on :class:`Pair`; ``COMPONENTWISE`` lists the linear operators that act on the
real and the imaginary part alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clusir.export.lowering.complex_pair import (
    Pair,
    as_pair,
    complex_abs,
    complex_add,
    complex_angle,
    complex_conj,
    complex_div,
    complex_exp,
    complex_log,
    complex_masked_fill,
    complex_mul,
    complex_polar,
    complex_power,
    complex_sgn,
    complex_sqrt,
    complex_sub,
    complex_where,
    filled,
    joined,
    loose,
    split_pair,
)

__all__ = ["COMPONENTWISE", "HANDLERS"]

_ATEN = torch.ops.aten


# -- products ----------------------------------------------------------------------------------------------------------


def _bilinear(product: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Pair]:
    """A complex matrix product or convolution from real ones: two where one side is real, otherwise four."""

    def apply(a: Any, b: Any) -> Pair:
        if not isinstance(a, Pair):
            return Pair(product(a, b.re), product(a, b.im))
        if not isinstance(b, Pair):
            return Pair(product(a.re, b), product(a.im, b))
        return Pair(product(a.re, b.re) - product(a.im, b.im), product(a.re, b.im) + product(a.im, b.re))

    return apply


def _einsum(equation: str, operands: Sequence[Any], **_: Any) -> Pair:
    if len(operands) != 2:
        raise NotImplementedError("einsum of complex tensors takes two operands here")
    return _bilinear(lambda a, b: torch.einsum(equation, a, b))(*operands)


def _linear(x: Any, weight: Any, bias: Any = None) -> Pair:
    result = _bilinear(torch.nn.functional.linear)(x, weight)
    return result if bias is None else complex_add(result, bias)


def _convolve(operator: Callable[..., Any]) -> Callable[..., Pair]:
    def apply(x: Any, weight: Any, bias: Any = None, *rest: Any, **more: Any) -> Pair:
        result = _bilinear(lambda a, w: operator(a, w, None, *rest, **more))(x, weight)
        if bias is None:
            return result
        shape = (1, -1) + (1,) * (result.re.dim() - 2)
        part = loose(bias)
        return complex_add(
            result, Pair(part.re.reshape(shape), part.im.reshape(shape) if isinstance(part.im, Tensor) else 0)
        )

    return apply


def _pad(a: Pair, pads: Sequence[Any], mode: Any = "constant", value: Any = None) -> Pair:
    """``pad`` and ``constant_pad_nd``: the constant is a complex number, as a rule one without an imaginary part."""
    pad = torch.nn.functional.pad
    if isinstance(mode, str) and mode != "constant":
        return Pair(pad(a.re, pads, mode), pad(a.im, pads, mode))
    number = as_pair(value if isinstance(mode, str) else mode)
    re, im = (0.0 if part is None else part for part in (number.re, number.im))
    return Pair(pad(a.re, pads, value=re), pad(a.im, pads, value=im))


def _norm(a: Pair, *rest: Any, **more: Any) -> Tensor:
    more.pop("dtype", None)
    return _ATEN.linalg_vector_norm.default(complex_abs(a), *rest, **more)


# -- making and unmaking -----------------------------------------------------------------------------------------------


def _real_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    return dtype.to_real() if dtype is not None and dtype.is_complex else dtype


def _cast(a: Any, dtype: torch.dtype | None = None, *rest: Any, **more: Any) -> Any:
    if not isinstance(dtype, torch.dtype):
        return as_pair(a)
    if dtype.is_complex:
        a = as_pair(a)
        return Pair(a.re.to(_real_dtype(dtype)), a.im.to(_real_dtype(dtype)))
    return a.re.to(dtype)


def _creation(make: Callable[..., Tensor]) -> Callable[..., Pair]:
    """``zeros``, ``ones_like`` and the like with a complex dtype, or of a complex tensor."""

    def apply(*args: Any, dtype: torch.dtype | None = None, **more: Any) -> Any:
        like = tuple(a.re if isinstance(a, Pair) else a for a in args)
        kept = {k: v for k, v in more.items() if k in ("device",)}
        if dtype is not None and not dtype.is_complex:
            return make(*like, dtype=dtype, **kept)
        re = make(*like, dtype=_real_dtype(dtype), **kept)
        return Pair(re, torch.zeros_like(re))

    return apply


def _full(size: Any, value: Any, *, dtype: torch.dtype | None = None, **more: Any) -> Pair:
    number, kept = as_pair(value), {k: v for k, v in more.items() if k == "device"}
    dtype = _real_dtype(dtype)
    return Pair(torch.full(size, number.re, dtype=dtype, **kept), torch.full(size, number.im, dtype=dtype, **kept))


def _fill(a: Any, value: Any) -> Pair:
    number = loose(value)
    zeros = torch.zeros_like(as_pair(a).re)
    return Pair(zeros + number.re, zeros + number.im)


def _full_like(a: Any, value: Any, *, dtype: torch.dtype | None = None, **more: Any) -> Any:
    like = a.re if isinstance(a, Pair) else a
    if dtype is not None and not dtype.is_complex:
        return torch.full_like(like, value, dtype=dtype)
    number = as_pair(value)
    dtype = _real_dtype(dtype)
    return Pair(torch.full_like(like, number.re, dtype=dtype), torch.full_like(like, number.im, dtype=dtype))


HANDLERS: dict[str, Callable[..., Any]] = {
    "add": complex_add,
    "sub": complex_sub,
    "rsub": lambda a, b, alpha=1: complex_sub(b, a, alpha),
    "mul": complex_mul,
    "div": complex_div,
    "true_divide": complex_div,
    "neg": lambda a: Pair(-a.re, -a.im),
    "reciprocal": lambda a: complex_div(1.0, a),
    "square": lambda a: complex_mul(a, a),
    "pow": complex_power,
    "abs": complex_abs,
    "angle": complex_angle,
    "sgn": complex_sgn,
    "conj": complex_conj,
    "_conj": complex_conj,
    "conj_physical": complex_conj,
    "_conj_physical": complex_conj,
    "resolve_conj": lambda a: a,
    "resolve_neg": lambda a: a,
    "real": lambda a: a.re,
    "imag": lambda a: a.im,
    "complex": lambda a, b: filled(a, b),
    "polar": complex_polar,
    "view_as_complex": split_pair,
    "view_as_real": joined,
    "exp": complex_exp,
    "log": complex_log,
    "sqrt": complex_sqrt,
    "sin": lambda a: Pair(torch.sin(a.re) * torch.cosh(a.im), torch.cos(a.re) * torch.sinh(a.im)),
    "cos": lambda a: Pair(torch.cos(a.re) * torch.cosh(a.im), -torch.sin(a.re) * torch.sinh(a.im)),
    "where": complex_where,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "masked_fill": complex_masked_fill,
    "mm": _bilinear(torch.mm),
    "bmm": _bilinear(torch.bmm),
    "matmul": _bilinear(torch.matmul),
    "einsum": _einsum,
    "linear": _linear,
    "conv1d": _convolve(torch.nn.functional.conv1d),
    "conv2d": _convolve(torch.nn.functional.conv2d),
    "convolution": _convolve(_ATEN.convolution.default),
    "linalg_vector_norm": _norm,
    "eq": lambda a, b: (loose(a).re == loose(b).re) & (loose(a).im == loose(b).im),
    "ne": lambda a, b: (loose(a).re != loose(b).re) | (loose(a).im != loose(b).im),
    "_to_copy": _cast,
    "to": _cast,
    "type_as": lambda a, b: as_pair(a) if isinstance(b, Pair) else _cast(a, b.dtype),
    "zeros": _creation(torch.zeros),
    "ones": _creation(torch.ones),
    "empty": _creation(torch.zeros),
    "zeros_like": _creation(torch.zeros_like),
    "ones_like": _creation(torch.ones_like),
    "empty_like": _creation(torch.zeros_like),
    "new_zeros": lambda a, size, **more: _creation(torch.zeros)(size, **{"dtype": torch.complex64, **more}),
    "fill": _fill,
    "full": _full,
    "full_like": _full_like,
    "scalar_tensor": lambda value, **more: _full([], value, **more),
    "_assert_tensor_metadata": lambda *args, **more: None,
    "sym_size": lambda a, dim: a.re.shape[dim],
}

# Linear operators that act on the real and the imaginary part alike.
_LINEAR = """
    permute transpose t numpy_T view reshape view_as _unsafe_view _reshape_alias flatten unflatten slice
    select narrow unsqueeze squeeze expand expand_as broadcast_to clone contiguous alias detach
    lift_fresh_copy lift_fresh cat concat stack index index_select gather flip repeat tile repeat_interleave
    split split_with_sizes chunk tensor_split unbind sum mean cumsum slice_scatter
    select_scatter copy index_put tril triu movedim moveaxis swapaxes swapdims unfold diagonal
    upsample_nearest2d upsample_bilinear2d avg_pool2d adaptive_avg_pool2d reflection_pad2d replication_pad2d
    pixel_shuffle pixel_unshuffle channel_shuffle squeeze_copy view_copy permute_copy dropout native_dropout
    alias_copy
"""
COMPONENTWISE = frozenset(_LINEAR.split())
