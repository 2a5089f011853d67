"""A complex tensor as a pair of real ones, and the arithmetic on such pairs.

Formulas are those of textbooks; where floating point needs care (``angle`` at zero, division, roots) the comment says
what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Pair",
    "as_pair",
    "complex_abs",
    "complex_add",
    "complex_angle",
    "complex_conj",
    "complex_div",
    "complex_exp",
    "complex_log",
    "complex_masked_fill",
    "complex_mul",
    "complex_polar",
    "complex_power",
    "complex_sgn",
    "complex_sqrt",
    "complex_sub",
    "complex_where",
    "filled",
    "joined",
    "loose",
    "roll",
    "safe_atan2",
    "split_pair",
]


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


def filled(re: Any, im: Any) -> Pair:
    """A Pair whose parts are tensors of one shape, where a part may be a number and broadcasting may be pending."""
    if _is_number(re):
        re = torch.full_like(im, re)
    elif _is_number(im):
        im = torch.full_like(re, im)
    if re.shape != im.shape:
        re, im = torch.broadcast_tensors(re, im)
    return Pair(re, im)


def complex_mul(a: Any, b: Any) -> Pair:
    if not isinstance(b, (Pair, complex)):
        a, b = b, a
    if not isinstance(a, (Pair, complex)):  # real times complex
        return Pair(a * b.re, a * b.im) if isinstance(b, Pair) else filled(_times(a, b.real), a * b.imag)
    a, b = as_pair(a), as_pair(b)
    if _is_number(a.re) and a.re == a.im == 0:
        return Pair(0 * b.re, 0 * b.im)
    re = _minus(_times(a.re, b.re), _times(a.im, b.im))
    im = _plus(_times(a.re, b.im), _times(a.im, b.re))
    return filled(re, im)


def complex_add(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = loose(a), loose(b)
    return filled(_plus(a.re, _times(alpha, b.re)), _plus(a.im, _times(alpha, b.im)))


def complex_sub(a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = loose(a), loose(b)
    return filled(_minus(a.re, _times(alpha, b.re)), _minus(a.im, _times(alpha, b.im)))


def loose(value: Any) -> Pair:
    """as_pair with the number 0, not a tensor of zeros, for a missing imaginary part."""
    if isinstance(value, (Pair, complex)):
        return as_pair(value)
    return Pair(value, 0)


def complex_abs(a: Pair) -> Tensor:
    """|a| without squares that leave the range of the type: the larger part times sqrt(1 + ratio^2)."""
    x, y = a.re.abs(), a.im.abs()
    large, small = torch.maximum(x, y), torch.minimum(x, y)
    # The ratio of 0 to 0 and of infinity to infinity is none; both are told by the larger part alone.
    ratio = torch.where(small > 0, small, 0.0) / torch.where(large > 0, large, 1.0)
    size: Tensor = large * torch.sqrt(1 + ratio * ratio)
    return torch.where(torch.isinf(large), large, size)


def complex_div(a: Any, b: Any, rounding_mode: str | None = None) -> Pair:
    if rounding_mode is not None:
        raise NotImplementedError("division with rounding is not defined")
    if not isinstance(b, (Pair, complex)):
        a = as_pair(a)
        return Pair(a.re / b, a.im / b)
    if isinstance(b, complex):
        return complex_mul(a, 1 / b)
    # a / b = a (conj b / |b|) / |b|: two divisions by |b| instead of one by |b|^2, which would lose range earlier
    size = complex_abs(b)
    turned = complex_mul(a, Pair(b.re / size, -b.im / size))
    return Pair(turned.re / size, turned.im / size)


def complex_conj(a: Pair) -> Pair:
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


def complex_angle(a: Any) -> Tensor:
    return safe_atan2(a.im, a.re)


def complex_polar(size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * torch.cos(angle), size * torch.sin(angle))


def complex_exp(a: Pair) -> Pair:
    return complex_polar(torch.exp(a.re), a.im)


def complex_log(a: Pair) -> Pair:
    return Pair(torch.log(complex_abs(a)), complex_angle(a))


def complex_sqrt(a: Pair) -> Pair:
    # Principal root without angles. t = sqrt((|a| + |re|) / 2) does not cancel; the other part is |im| / (2 t).
    large = torch.sqrt(complex_abs(a) / 2 + a.re.abs() / 2)
    small = a.im.abs() / (2 * large).clamp_min(torch.finfo(large.dtype).tiny)
    right = a.re >= 0
    im = torch.where(right, small, large)
    return Pair(torch.where(right, large, small), torch.where(a.im < 0, -im, im))


def complex_sgn(a: Pair) -> Pair:
    size = complex_abs(a)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    return Pair(a.re / safe, a.im / safe)


def complex_power(a: Any, exponent: Any) -> Any:
    if isinstance(a, Pair) and isinstance(exponent, (int, float)):
        if exponent == int(exponent) and 0 < abs(exponent) <= 8:
            result = a
            for _ in range(abs(int(exponent)) - 1):
                result = complex_mul(result, a)
            return result if exponent > 0 else complex_div(1.0, result)
        if exponent == 0.5:
            return complex_sqrt(a)
        return complex_polar(complex_abs(a) ** exponent, complex_angle(a) * exponent)
    base = a if isinstance(a, Pair) else None
    if base is None and isinstance(a, (int, float)) and a > 0:
        return complex_exp(complex_mul(exponent, math.log(a)))
    if base is None:
        raise NotImplementedError("a power with this base and a complex exponent has no real form here")
    return complex_exp(complex_mul(exponent, complex_log(base)))


def complex_where(condition: Tensor, a: Any, b: Any) -> Pair:
    a, b = loose(a), loose(b)
    tensors = [p for p in (a.re, a.im, b.re, b.im) if isinstance(p, Tensor)]
    dtype = tensors[0].dtype if tensors else torch.get_default_dtype()

    def part(value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=condition.device)

    return filled(torch.where(condition, part(a.re), part(b.re)), torch.where(condition, part(a.im), part(b.im)))


def complex_masked_fill(a: Pair, mask: Tensor, value: Any) -> Pair:
    value = loose(value)
    return Pair(torch.where(mask, value.re, a.re), torch.where(mask, value.im, a.im))


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


def joined(a: Any) -> Tensor:
    """A complex tensor as a real one, its two parts last."""
    a = as_pair(a)
    return torch.stack([a.re, a.im], dim=-1)


def split_pair(values: Tensor) -> Pair:
    """What :func:`joined` made, as a pair."""
    return Pair(values[..., 0], values[..., 1])
