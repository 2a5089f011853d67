"""Ranges, parts, running extremes and grids of places along axes of symbolic length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusir.export.trace.resample import is_symbolic

__all__ = ["INDICES"]

_DOUBLINGS = 16  # of a length of up to 65,536


class _Running:
    """The largest so far along the last axis of ``values``, times ``sign``, and where it is: the last of equal ones.
    Worked out when it is asked for, since hardly any network asks for both."""

    def __init__(self, values: Tensor, sign: int, dim: int) -> None:
        self._given, self._sign, self._dim = values, sign, dim
        self._found = _upto(values)

    @property
    def values(self) -> Tensor:
        return self._sign * self._found.movedim(-1, self._dim)

    @property
    def indices(self) -> Tensor:
        places = torch.arange(self._given.shape[-1], device=self._given.device).to(torch.float32)
        there = _upto(torch.where(self._given >= self._found, places, torch.zeros_like(places)))
        return there.to(torch.int64).movedim(-1, self._dim)

    def __getitem__(self, index: int) -> Tensor:
        return self.values if index in (0, -2) else self.indices

    def __iter__(self) -> Iterator[Tensor]:
        yield self.values
        yield self.indices


def _arange(*args: Any, **kwargs: Any) -> Any:
    """A range backwards as what is left of one forwards: ONNX Runtime reads what is gathered by one that ends at -1 as
    a slice to the last element, which is empty."""
    if len(args) != 3 or kwargs or not is_symbolic(args[:2]) or not (isinstance(args[2], int) and args[2] < 0):
        return NotImplemented
    start, end, step = args
    return start + step * torch.arange((start - end - step - 1) // -step)


def _tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> Any:
    """As many parts, the first of them one longer where the length leaves a remainder."""
    length, count = input.shape[dim], indices_or_sections
    if not isinstance(count, int) or not is_symbolic(length):
        return NotImplemented
    part, more = length // count, length % count
    starts = [part * i + torch.sym_min(i, more) for i in range(count)] + [length]
    return tuple(input.narrow(dim, starts[i], starts[i + 1] - starts[i]) for i in range(count))


def _upto(input: Tensor) -> Tensor:
    """The largest so far along the last axis: of twice as many with each step."""
    length = input.shape[-1]
    found = input
    for step in range(_DOUBLINGS):
        shift = torch.sym_min(2**step, length)
        found = torch.maximum(found, F.pad(found, (shift, 0), value=float("-inf"))[..., :length])
    return found


def _running(sign: int) -> Callable[..., Any]:
    def run(input: Tensor, dim: int) -> Any:
        """cummax and cummin, which ONNX has not."""
        if not input.is_floating_point() or input.dim() == 0:
            return NotImplemented
        return _Running(sign * input.movedim(dim, -1), sign, dim)

    return run


def _affine_grid(theta: Tensor, size: Any, align_corners: bool | None = None) -> Any:
    """BxHxWx2: where each pixel of a picture of ``size`` is read, in -1..1 of width and height."""
    if len(size) != 4 or not is_symbolic(tuple(size)):
        return NotImplemented

    def places(length: Any) -> Tensor:
        place = torch.arange(length, device=theta.device).to(theta.dtype)
        return place * 2 / (length - 1) - 1 if align_corners else (2 * place + 1) / length - 1

    batch, _, high, wide = size
    x, y = places(wide)[None, :].expand(high, wide), places(high)[:, None].expand(high, wide)
    base = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, high * wide, 3)
    return (base @ theta.transpose(1, 2)).reshape(batch, high, wide, 2)


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
           inplace: bool = False) -> Any:  # fmt: skip
    """In eval mode the mean of the slopes that training draws."""
    return NotImplemented if training else F.leaky_relu(input, (lower + upper) / 2)


def _fake_quantize(input: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    if isinstance(scale, Tensor) or isinstance(zero_point, Tensor):
        return NotImplemented
    steps = torch.round(input * (1 / scale) + zero_point).clamp(quant_min, quant_max)
    return (steps - zero_point) * scale


INDICES: dict[Any, Callable[..., Any]] = {
    torch.arange: _arange,
    torch.tensor_split: _tensor_split,
    Tensor.tensor_split: _tensor_split,
    torch.cummax: _running(1),
    Tensor.cummax: _running(1),
    torch.cummin: _running(-1),
    Tensor.cummin: _running(-1),
    F.affine_grid: _affine_grid,
    F.rrelu: _rrelu,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
}
