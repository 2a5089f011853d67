"""Real forms of complex operators on :class:`Pair`, one function per ATen name.

Formulas are those of textbooks; where floating point needs care (``angle`` at zero, division) the comment says what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPONENTWISE", "HANDLERS", "Pair", "as_pair", "roll", "safe_atan2"]

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Pair:
    """A complex tensor as its real and imaginary part, two real tensors of one shape and dtype."""

    re: Any
    im: Any


def as_pair(value: Any) -> Pair:
    """A real or complex number or tensor as a Pair (imaginary part zero where it has none)."""
    if isinstance(value, Pair):
        return value
    if isinstance(value, complex):
        return Pair(value.real, value.imag)
    return Pair(value, torch.zeros_like(value) if isinstance(value, Tensor) else 0.0)


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor)


# -- arithmetic; a factor that is a plain number, or that has no imaginary part, costs no operator ---------------------


def _times(a: Any, b: Any) -> Any:
    """a * b for real numbers or tensors, without a node where one factor is the number 0 or 1."""
    for x, y in ((a, b), (b, a)):
        if _is_number(x) and x == 1:
            return y
        if _is_number(x) and x == 0:
            return 0.0
    return a * b


def _plus(a: Any, b: Any) -> Any:
    if _is_number(a) and a == 0:
        return b
    return a if _is_number(b) and b == 0 else a + b


def _minus(a: Any, b: Any) -> Any:
    if _is_number(b) and b == 0:
        return a
    return -b if _is_number(a) and a == 0 else a - b


def _filled(re: Any, im: Any) -> Pair:
    """A Pair whose parts are tensors of one shape, where a part may be a number and broadcasting may be pending."""
    if _is_number(re):
        re = torch.full_like(im, re)
    elif _is_number(im):
        im = torch.full_like(re, im)
    if re.shape != im.shape:
        re, im = torch.broadcast_tensors(re, im)  # type: ignore[no-untyped-call]
    return Pair(re, im)


def _mul(a: Any, b: Any) -> Pair:
    if not isinstance(b, (Pair, complex)):
        a, b = b, a
    if not isinstance(a, (Pair, complex)):  # real times complex
        return Pair(a * b.re, a * b.im) if isinstance(b, Pair) else _filled(_times(a, b.real), a * b.imag)
    a, b = as_pair(a), as_pair(b)
    if _is_number(a.re) and a.re == a.im == 0:
        return Pair(0 * b.re, 0 * b.im)
    re = _minus(_times(a.re, b.re), _times(a.im, b.im))
    im = _plus(_times(a.re, b.im), _times(a.im, b.re))
    return _filled(re, im)


def _add(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = _loose(a), _loose(b)
    return _filled(_plus(a.re, _times(alpha, b.re)), _plus(a.im, _times(alpha, b.im)))


def _sub(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = _loose(a), _loose(b)
    return _filled(_minus(a.re, _times(alpha, b.re)), _minus(a.im, _times(alpha, b.im)))


def _loose(value: Any) -> Pair:
    """as_pair with the number 0, not a tensor of zeros, for a missing imaginary part."""
    if isinstance(value, (Pair, complex)):
        return as_pair(value)
    return Pair(value, 0)


def _abs2(a: Pair) -> Tensor:
    result: Tensor = a.re * a.re + a.im * a.im
    return result


def _abs(a: Pair) -> Tensor:
    return torch.sqrt(_abs2(a))


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Pair:
    if rounding_mode is not None:
        raise NotImplementedError("division with rounding is not defined")
    if not isinstance(b, (Pair, complex)):
        a = as_pair(a)
        return Pair(a.re / b, a.im / b)
    if isinstance(b, complex):
        return _mul(a, 1 / b)
    # a / b = a (conj b / |b|) / |b|: two divisions by |b| instead of one by |b|^2, which would lose range earlier
    size = _abs(b)
    turned = _mul(a, Pair(b.re / size, -b.im / size))
    return Pair(turned.re / size, turned.im / size)


def _conj(a: Pair) -> Pair:
    return Pair(a.re, -a.im)


def safe_atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 from one atan of a ratio in 0..1: defined at (0, 0), where the usual y / x would give NaN.

    Radians in -pi..pi. The branch cut follows the sign of y; a y of exactly zero counts as positive.
    """
    large, small = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    angle = torch.atan(small / large.clamp_min(torch.finfo(x.dtype).tiny))
    angle = torch.where(y.abs() > x.abs(), math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)


def _angle(a: Any) -> Tensor:
    return safe_atan2(a.im, a.re)


def _polar(size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * torch.cos(angle), size * torch.sin(angle))


def _exp(a: Pair) -> Pair:
    return _polar(torch.exp(a.re), a.im)


def _log(a: Pair) -> Pair:
    return Pair(torch.log(_abs(a)), _angle(a))


def _sqrt(a: Pair) -> Pair:
    # Principal root without angles. t = sqrt((|a| + |re|) / 2) does not cancel; the other part is |im| / (2 t).
    large = torch.sqrt((_abs(a) + a.re.abs()) / 2)
    small = a.im.abs() / (2 * large).clamp_min(torch.finfo(large.dtype).tiny)
    right = a.re >= 0
    im = torch.where(right, small, large)
    return Pair(torch.where(right, large, small), torch.where(a.im < 0, -im, im))


def _sgn(a: Pair) -> Pair:
    size = _abs(a)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    return Pair(a.re / safe, a.im / safe)


def _power(a: Any, exponent: Any) -> Any:
    if isinstance(a, Pair) and isinstance(exponent, (int, float)):
        if exponent == int(exponent) and 0 < abs(exponent) <= 8:
            result = a
            for _ in range(abs(int(exponent)) - 1):
                result = _mul(result, a)
            return result if exponent > 0 else _div(1.0, result)
        if exponent == 0.5:
            return _sqrt(a)
        return _polar(_abs(a) ** exponent, _angle(a) * exponent)
    base = a if isinstance(a, Pair) else None
    if base is None and isinstance(a, (int, float)) and a > 0:
        return _exp(_mul(exponent, math.log(a)))
    if base is None:
        raise NotImplementedError("a power with this base and a complex exponent has no real form here")
    return _exp(_mul(exponent, _log(base)))


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    a, b = _loose(a), _loose(b)
    return _filled(torch.where(condition, a.re, b.re), torch.where(condition, _tensor(a.im, a), _tensor(b.im, b)))


def _tensor(part: Any, whole: Pair) -> Tensor:
    return part if isinstance(part, Tensor) else torch.zeros_like(whole.re)


def _masked_fill(a: Pair, mask: Tensor, value: Any) -> Pair:
    value = _loose(value)
    return Pair(torch.where(mask, value.re, a.re), torch.where(mask, value.im, a.im))


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
    return result if bias is None else _add(result, bias)


def _convolve(operator: Callable[..., Any]) -> Callable[..., Pair]:
    def apply(x: Any, weight: Any, bias: Any = None, *rest: Any, **more: Any) -> Pair:
        result = _bilinear(lambda a, w: operator(a, w, None, *rest, **more))(x, weight)
        if bias is None:
            return result
        shape = (1, -1) + (1,) * (result.re.dim() - 2)
        part = _loose(bias)
        return _add(result, Pair(part.re.reshape(shape), part.im.reshape(shape) if isinstance(part.im, Tensor) else 0))

    return apply


def _norm(a: Pair, *rest: Any, **more: Any) -> Tensor:
    more.pop("dtype", None)
    return _ATEN.linalg_vector_norm.default(_abs(a), *rest, **more)  # type: ignore[no-any-return]


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
    number = _loose(value)
    zeros = torch.zeros_like(as_pair(a).re)
    return Pair(zeros + number.re, zeros + number.im)


def _full_like(a: Any, value: Any, *, dtype: torch.dtype | None = None, **more: Any) -> Any:
    like = a.re if isinstance(a, Pair) else a
    if dtype is not None and not dtype.is_complex:
        return torch.full_like(like, value, dtype=dtype)
    number = as_pair(value)
    dtype = _real_dtype(dtype)
    return Pair(torch.full_like(like, number.re, dtype=dtype), torch.full_like(like, number.im, dtype=dtype))


def _split(values: Tensor) -> Pair:
    return Pair(values[..., 0], values[..., 1])


def _join(a: Any) -> Tensor:
    a = as_pair(a)
    return torch.stack([a.re, a.im], dim=-1)


def roll(x: Tensor, shifts: Sequence[Any] | Any, dims: Sequence[int] | Any = ()) -> Tensor:
    """``torch.roll`` as two slices and a concatenation per axis; shifts may be symbolic (``h // 2``), of any sign."""
    shifts = list(shifts) if isinstance(shifts, (list, tuple)) else [shifts]
    dims = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    if not dims:
        return roll(x.flatten(), shifts, [0]).view(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        start = (size - shift) % size  # where the rolled tensor begins in the old one
        x = torch.cat([x.narrow(dim, start, size - start), x.narrow(dim, 0, start)], dim)
    return x


HANDLERS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda a, b, alpha=1: _sub(b, a, alpha),
    "mul": _mul,
    "div": _div,
    "true_divide": _div,
    "neg": lambda a: Pair(-a.re, -a.im),
    "reciprocal": lambda a: _div(1.0, a),
    "square": lambda a: _mul(a, a),
    "pow": _power,
    "abs": _abs,
    "angle": _angle,
    "sgn": _sgn,
    "conj": _conj,
    "_conj": _conj,
    "conj_physical": _conj,
    "_conj_physical": _conj,
    "resolve_conj": lambda a: a,
    "resolve_neg": lambda a: a,
    "real": lambda a: a.re,
    "imag": lambda a: a.im,
    "complex": lambda a, b: _filled(a, b),
    "polar": _polar,
    "view_as_complex": _split,
    "view_as_real": _join,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "sin": lambda a: Pair(torch.sin(a.re) * torch.cosh(a.im), torch.cos(a.re) * torch.sinh(a.im)),
    "cos": lambda a: Pair(torch.cos(a.re) * torch.cosh(a.im), -torch.sin(a.re) * torch.sinh(a.im)),
    "where": _where,
    "masked_fill": _masked_fill,
    "mm": _bilinear(torch.mm),
    "bmm": _bilinear(torch.bmm),
    "matmul": _bilinear(torch.matmul),
    "einsum": _einsum,
    "linear": _linear,
    "conv1d": _convolve(torch.nn.functional.conv1d),
    "conv2d": _convolve(torch.nn.functional.conv2d),
    "convolution": _convolve(_ATEN.convolution.default),
    "linalg_vector_norm": _norm,
    "eq": lambda a, b: (_loose(a).re == _loose(b).re) & (_loose(a).im == _loose(b).im),
    "ne": lambda a, b: (_loose(a).re != _loose(b).re) | (_loose(a).im != _loose(b).im),
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
    split split_with_sizes chunk tensor_split unbind constant_pad_nd pad sum mean cumsum slice_scatter
    select_scatter copy index_put tril triu movedim moveaxis swapaxes swapdims unfold diagonal
    upsample_nearest2d upsample_bilinear2d avg_pool2d adaptive_avg_pool2d reflection_pad2d replication_pad2d
    pixel_shuffle pixel_unshuffle channel_shuffle squeeze_copy view_copy permute_copy dropout native_dropout
    alias_copy
"""
COMPONENTWISE = frozenset(_LINEAR.split())
