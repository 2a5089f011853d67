"""torch.fft on pairs of real tensors, over three opaque operators that take and return ``[..., 2]`` reals.

The operators ``clusir::fft_r2c``, ``fft_c2r`` and ``fft_c2c`` compute what ATen's ``_fft_*`` compute and exist for the
tracer: ATen's own shape functions reason about strides, which takes minutes where a size is symbolic (patches of a
padded picture); these only say a shape. ``s=`` becomes slices and pads, as in PyTorch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from clusir.export.lowering.complex_pair import Pair, as_pair, joined, roll, split_pair

__all__ = ["FFT_HANDLERS", "aten_transforms", "fft_c2c", "fft_c2r", "fft_r2c", "pair_translations"]

_ATEN = torch.ops.aten


@torch.library.custom_op("clusir::fft_r2c", mutates_args=())
def fft_r2c(x: Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    """real [...] -> [..., 2]: ``view_as_real(aten._fft_r2c(...))``; the last of ``dim`` is halved where one-sided."""
    return torch.view_as_real(_ATEN._fft_r2c.default(x, list(dim), normalization, onesided)).contiguous()


@fft_r2c.register_fake
def _(x: Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    shape = list(x.shape)
    if onesided:
        shape[dim[-1]] = shape[dim[-1]] // 2 + 1
    return x.new_empty([*shape, 2])


@torch.library.custom_op("clusir::fft_c2r", mutates_args=())
def fft_c2r(x: Tensor, dim: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    """[..., 2], one-sided along the last of ``dim`` -> real [...], that axis of ``last_dim_size``."""
    spectrum = torch.view_as_complex(x.contiguous())
    result: Tensor = _ATEN._fft_c2r.default(spectrum, list(dim), normalization, last_dim_size)
    return result.clone()


@fft_c2r.register_fake
def _(x: Tensor, dim: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    shape = list(x.shape[:-1])
    shape[dim[-1]] = last_dim_size
    return x.new_empty(shape)


@torch.library.custom_op("clusir::fft_c2c", mutates_args=())
def fft_c2c(x: Tensor, dim: Sequence[int], normalization: int, forward: bool) -> Tensor:
    """[..., 2] -> [..., 2]."""
    result = _ATEN._fft_c2c.default(torch.view_as_complex(x.contiguous()), list(dim), normalization, forward)
    return torch.view_as_real(result).clone()


@fft_c2c.register_fake
def _(x: Tensor, dim: Sequence[int], normalization: int, forward: bool) -> Tensor:
    return x.new_empty(x.shape)


# What stands for each of ATen's primitives; the ONNX translation of one serves the other: both see [..., 2] reals.
_PRIMITIVES = {
    _ATEN._fft_r2c.default: torch.ops.clusir.fft_r2c.default,
    _ATEN._fft_c2r.default: torch.ops.clusir.fft_c2r.default,
    _ATEN._fft_c2c.default: torch.ops.clusir.fft_c2c.default,
}


def pair_translations(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """A translation table for ATen's primitives, with the opaque operators added."""
    added = {}
    for op, function in table.items():
        if op in _PRIMITIVES:
            # A bare copy: the original may carry a mark that it takes complex operands, which these operators have not.
            plain = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
            plain.__annotations__, plain.__doc__ = dict(function.__annotations__), function.__doc__
            added[_PRIMITIVES[op]] = plain
    return {**table, **added}


def _positive(dim: Sequence[int], rank: int) -> list[int]:
    return [d % rank for d in dim]


# Whether the transforms are emitted as the opaque operators, or as ATen's own (torch lowers those to DFT).
_OPAQUE: ContextVar[bool] = ContextVar("opaque", default=True)


@contextlib.contextmanager
def aten_transforms() -> Iterator[None]:
    """Within it the transforms are ATen's ``_fft_*`` between ``view_as_complex`` and ``view_as_real``."""
    token = _OPAQUE.set(False)
    try:
        yield
    finally:
        _OPAQUE.reset(token)


def _check_lengths(x: Tensor, dim: Sequence[int]) -> None:
    """A transform becomes a product with a table of length x length; over all tokens (h * w) that is the square of the
    picture, gigabytes at an ordinary size."""
    lengths: list[Any] = [x.shape[d] for d in dim]
    for length in lengths:
        if isinstance(length, torch.SymInt) and len(length.node.expr.free_symbols) > 1:
            raise NotImplementedError(
                "a transform over all tokens of a picture (height times width) needs tables that grow with the square "
                "of the picture; transform rows and columns apart, or export one small size with --size"
            )


def _r2c(x: Tensor, dim: Sequence[int], norm: int, onesided: bool) -> Pair:
    dim = _positive(dim, x.dim())
    _check_lengths(x, dim)
    if not _OPAQUE.get():
        return split_pair(torch.view_as_real(_ATEN._fft_r2c.default(x, dim, norm, onesided)))
    return split_pair(fft_r2c(x, dim, norm, onesided))


def _c2r(a: Any, dim: Sequence[int], norm: int, last_dim_size: Any) -> Tensor:
    x = joined(a)
    dim = _positive(dim, x.dim() - 1)
    result: Tensor
    if _OPAQUE.get():
        result = fft_c2r(x, dim, norm, last_dim_size)
    else:
        result = _ATEN._fft_c2r.default(torch.view_as_complex(x), dim, norm, last_dim_size)
    return result


def _c2c(a: Any, dim: Sequence[int], norm: int, forward: bool) -> Pair:
    x = joined(a)
    dim = _positive(dim, x.dim() - 1)
    _check_lengths(x, dim)
    if not _OPAQUE.get():
        return split_pair(torch.view_as_real(_ATEN._fft_c2c.default(torch.view_as_complex(x), dim, norm, forward)))
    return split_pair(fft_c2c(x, dim, norm, forward))


def _mode(norm: str | None, inverse: bool) -> int:
    """ATen's number for a normalisation: 0 none, 1 by 1/sqrt(n), 2 by 1/n."""
    if norm == "ortho":
        return 1
    return 2 if inverse == (norm in (None, "backward")) else 0


def _apply(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    return Pair(f(x.re), f(x.im)) if isinstance(x, Pair) else f(x)


def _resized(x: Any, dim: int, size: Any) -> Any:
    """Cut or zero-padded at the end of ``dim`` to ``size``, as ``s=`` asks."""
    rank = (x.re if isinstance(x, Pair) else x).dim()
    old = (x.re if isinstance(x, Pair) else x).shape[dim]
    if size < old:
        return _apply(lambda t: t.narrow(dim, 0, size), x)
    if size > old:
        pads = [0, 0] * (rank - 1 - dim % rank) + [0, size - old]
        return _apply(lambda t: torch.nn.functional.pad(t, pads), x)
    return x


def _axes(x: Any, s: Sequence[Any] | None, dim: Sequence[int] | None) -> tuple[list[int], list[Any]]:
    """Axes (not negative) and the length asked for each (-1: its own), as torch.fft reads ``s`` and ``dim``."""
    rank = (x.re if isinstance(x, Pair) else x).dim()
    if dim is None:
        dim = list(range(rank)) if s is None else list(range(rank - len(s), rank))
    return _positive(list(dim), rank), list(s) if s is not None else [-1] * len(dim)


def _wanted(size: Any) -> bool:
    return not (isinstance(size, int) and size == -1)


def _forward_n(x: Any, s: Any = None, dim: Any = None, norm: str | None = None, *, inverse: bool, half: bool) -> Pair:
    """fftn, ifftn and (``half``) rfftn."""
    axes, sizes = _axes(x, s, dim)
    for axis, size in zip(axes, sizes, strict=True):
        if _wanted(size):
            x = _resized(x, axis, size)
    if isinstance(x, Pair):
        return _c2c(x, axes, _mode(norm, inverse), not inverse)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if not inverse:
        return _r2c(x, axes, _mode(norm, False), half)
    # The inverse of a real signal is the conjugate of its forward transform.
    straight = _r2c(x, axes, _mode(norm, True), False)
    return Pair(straight.re, -straight.im)


def _inverse_half_n(x: Any, s: Any = None, dim: Any = None, norm: str | None = None, *, hermitian: bool) -> Tensor:
    """irfftn, and (``hermitian``) hfftn: the same of the conjugate, with the norm of a forward transform."""
    axes, sizes = _axes(x, s, dim)
    x = as_pair(x)
    x = Pair(x.re, -x.im) if hermitian else x
    last = sizes[-1] if _wanted(sizes[-1]) else 2 * (x.re.shape[axes[-1]] - 1)
    for axis, size in zip(axes[:-1], sizes[:-1], strict=True):
        if _wanted(size):
            x = _resized(x, axis, size)
    x = _resized(x, axes[-1], last // 2 + 1)
    return _c2r(x, axes, _mode(norm, not hermitian), last)


def _hermitian_n(x: Any, s: Any = None, dim: Any = None, norm: str | None = None) -> Pair:
    """ihfftn: the conjugate of rfftn, with the norm of an inverse transform."""
    straight = _forward_n(x, s, dim, {"ortho": "ortho", "forward": "backward"}.get(norm or "", "forward"),
                          inverse=False, half=True)  # fmt: skip
    return Pair(straight.re, -straight.im)


def _one(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """The 1-D form ``(x, n=None, dim=-1, norm=None)`` of an n-D function."""

    def apply(x: Any, n: Any = None, dim: int = -1, norm: str | None = None) -> Any:
        return function(x, None if n is None else [n], [dim], norm, **fixed)

    return apply


def _two(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """The 2-D form, whose axes are the last two unless named."""

    def apply(x: Any, s: Any = None, dim: Sequence[int] = (-2, -1), norm: str | None = None) -> Any:
        return function(x, s, dim, norm, **fixed)

    return apply


def _many(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda x, s=None, dim=None, norm=None: function(x, s, dim, norm, **fixed)


def _shift(x: Any, dim: Sequence[int] | int | None = None, *, back: bool) -> Any:
    """fftshift and ifftshift: a roll by half of each axis; the size may be symbolic."""
    first = x.re if isinstance(x, Pair) else x
    dims = list(range(first.dim())) if dim is None else ([dim] if isinstance(dim, int) else list(dim))
    shifts = [(first.shape[d] + 1) // 2 if back else first.shape[d] // 2 for d in dims]
    return _apply(lambda t: roll(t, shifts, dims), x)


def _table() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {"_fft_r2c": _r2c, "_fft_c2r": _c2r, "_fft_c2c": _c2c}
    for form, end in ((_one, ""), (_two, "2"), (_many, "n")):
        table[f"fft_fft{end}"] = form(_forward_n, inverse=False, half=False)
        table[f"fft_ifft{end}"] = form(_forward_n, inverse=True, half=False)
        table[f"fft_rfft{end}"] = form(_forward_n, inverse=False, half=True)
        table[f"fft_irfft{end}"] = form(_inverse_half_n, hermitian=False)
        table[f"fft_hfft{end}"] = form(_inverse_half_n, hermitian=True)
        table[f"fft_ihfft{end}"] = form(_hermitian_n)
    table["fft_fftshift"] = lambda x, dim=None: _shift(x, dim, back=False)
    table["fft_ifftshift"] = lambda x, dim=None: _shift(x, dim, back=True)
    return table


FFT_HANDLERS = _table()
