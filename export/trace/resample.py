"""Pooling and resizing whose windows depend on a symbolic size: products with matrices made of the sizes.

Along each axis every one of these is linear, out = W x, with W [out, in] written from ranges, so that it holds for any
size. Maxima are taken over gathered windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusir.export.lowering.quotient import quotient

__all__ = [
    "adaptive_avg",
    "adaptive_max",
    "antialiased",
    "average",
    "average_of_padded",
    "is_symbolic",
    "is_whole",
    "nearest",
]


def is_symbolic(*sizes: Any) -> bool:
    """Whether one of the numbers (or of the numbers in a sequence) is a symbol."""
    flat = [n for size in sizes for n in (size if isinstance(size, (tuple, list)) else (size,))]
    return any(isinstance(n, (torch.SymInt, torch.SymFloat)) for n in flat)


def _along(x: Tensor, dim: int, weights: Tensor) -> Tensor:
    """The product of ``weights`` [out, in] with axis ``dim`` (-1 or -2) of ``x``."""
    weights = weights.to(x.dtype)
    return x @ weights.T if dim == -1 else weights @ x


def _bins(size: Any, out: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last sample of each bin of an adaptive pool: floor(i n / m), ceil((i + 1) n / m)."""
    i = torch.arange(out, device=like.device)
    return _floor_ratio(i * size, out), _floor_ratio((i + 1) * size + (out - 1), out)


def _floor_ratio(count: Tensor, parts: Any) -> Tensor:
    """floor(count / parts) of whole numbers from 0 on, half a part away from where the quotient steps: OpenVINO
    multiplies by a reciprocal, and 856 / 107 would be less than 8."""
    return torch.div(2 * count + 1, 2 * parts, rounding_mode="floor")


def _averages(size: Any, first: Tensor, last: Tensor, like: Tensor) -> Tensor:
    """[out, in]: the mean of the samples first .. last - 1."""
    n = torch.arange(size, device=like.device)
    inside = (n[None] >= first[:, None]) & (n[None] < last[:, None])
    weights: Tensor = inside.to(like.dtype) / (last - first).to(like.dtype)[:, None]
    return weights


def adaptive_avg(x: Tensor, target: Sequence[Any]) -> Tensor:
    """``adaptive_avg_pool`` over the last ``len(target)`` axes (one or two); None keeps an axis."""
    for dim, out in zip(range(-len(target), 0), target, strict=True):
        if out is not None:
            x = _along(x, dim, _averages(x.shape[dim], *_bins(x.shape[dim], out, x), x))
    return x


def adaptive_max(x: Tensor, target: Sequence[Any]) -> Tensor:
    """``adaptive_max_pool`` over the last ``len(target)`` axes."""
    for dim, out in zip(range(-len(target), 0), target, strict=True):
        if out is None:
            continue
        size = x.shape[dim]
        first, last = _bins(size, out, x)
        longest = (2 * (size + out - 1) + 1) // (2 * out) + 1  # no bin is longer; see _floor_ratio
        at = first[:, None] + torch.arange(longest, device=x.device)[None]
        at = torch.minimum(at, last[:, None] - 1)
        picked = x.index_select(dim, at.flatten())
        shape = list(picked.shape)
        shape[dim : x.dim() + dim + 1] = [out, longest]
        x = picked.reshape(shape).amax(dim + x.dim() + 1)
    return x


def average_of_padded(
    input: Tensor, window: tuple[Any, Any, Any], ceil_mode: bool, include: bool, divisor: int | None
) -> Any:
    """A pool of fixed ``window`` (kernel, stride, padding) that ONNX has not, or runtimes have wrong: sums over another
    number, and windows that reach over the padding where that counts. NotImplemented for any other."""
    kernel, stride, pads = ((a, a) if isinstance(a, int) else tuple(a) for a in window)
    if divisor is None and not (ceil_mode and include and any(pads)):
        return NotImplemented
    made = F.pad(input, (pads[1], pads[1], pads[0], pads[0]))
    for axis, further in ((-2, stride[0] - 1), (-1, stride[1] - 1)) if ceil_mode else ():
        # No Pad: it would become the pool's own, which is to be less than its window.
        made = torch.cat([made, torch.zeros_like(made.narrow(axis, 0, 1)).repeat_interleave(further, axis)], axis)
    made = F.avg_pool2d(made, kernel, stride)
    if divisor is not None:
        made = made * (kernel[0] * kernel[1] / divisor)
    for axis in (-2, -1) if ceil_mode else ():
        size, k, p, s = input.shape[axis], kernel[axis], pads[axis], stride[axis]
        # No window begins behind the picture and its first padding.
        made = made.narrow(axis, 0, torch.sym_min((size + p - 1) // s + 1, made.shape[axis]))
        if divisor is None:  # what lies behind the second padding does not count
            start = torch.arange(made.shape[axis], device=input.device) * s
            share = k / (torch.clamp(start + k, max=size + 2 * p) - start).to(input.dtype)
            made = made * (share if axis == -1 else share[:, None])
    return made


def average(x: Tensor, kernel: Sequence[Any], stride: Sequence[Any]) -> Tensor:
    """``avg_pool`` without padding over the last axes, where the window or the step is symbolic."""
    for dim, window, step in zip(range(-len(kernel), 0), kernel, stride, strict=True):
        size = x.shape[dim]
        first = torch.arange((size - window) // step + 1, device=x.device) * step
        x = _along(x, dim, _averages(size, first, first + window, x))
    return x


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def _cubic(t: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as torch takes it with antialias."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


def antialiased(x: Tensor, sizes: Sequence[Any], scales: Sequence[Any], mode: str, corners: bool) -> Tensor:
    """``interpolate(..., antialias=True)`` to ``sizes``: the kernel stretched by the shrinkage, its weights to sum 1.

    ``scales``: input over output along each axis where a scale factor was given, else None.
    """
    kernel, reach = _KERNELS[mode]
    for dim, out, scale in zip((-2, -1), sizes, scales, strict=True):
        size = x.shape[dim]
        i = torch.arange(out, device=x.device).to(torch.float32)
        n = torch.arange(size, device=x.device).to(torch.float32)
        if corners:
            step = _as_tensor(size - 1, x) / _as_tensor(out - 1, x).clamp(min=1)
            stretch = step.clamp(min=1)
            centre = step * i + 0.5
        else:
            step = _as_tensor(scale, x) if scale is not None else _as_tensor(size, x) / _as_tensor(out, x)
            stretch = step.clamp(min=1)
            centre = step * (i + 0.5)
        support = reach * stretch
        first = torch.floor(centre - support + 0.5).clamp(min=0)[:, None]
        last = torch.minimum(torch.floor(centre + support + 0.5), _as_tensor(size, x))[:, None]
        weights = kernel((n[None] - centre[:, None] + 0.5) / stretch)
        weights = torch.where((n[None] >= first) & (n[None] < last), weights, torch.zeros_like(weights))
        x = _along(x, dim, weights / weights.sum(1, keepdim=True))
    return x


def is_whole(out: Any, size: Any) -> bool:
    """Whether ``out`` is a whole number of times ``size``, wherever the tracer's symbols stand for."""
    if not is_symbolic(out, size):
        return int(out) % int(size) == 0
    if not (is_symbolic(out) and is_symbolic(size)):
        return False
    env = out.node.shape_env
    ratio = env.replace(out.node.expr) / env.replace(size.node.expr)
    return bool(ratio.is_Integer)


def nearest(x: Tensor, sizes: Sequence[Any], scales: Sequence[float | None], exact: bool) -> Tensor:
    """``interpolate(..., mode="nearest")``, or ``"nearest-exact"``, to ``sizes``: rows picked by torch's own float32
    index, floor(i * scale) or floor((i + 0.5) * scale). ONNX's Resize rounds otherwise where the ratio is not whole.

    ``scales``: input over output along each axis where a scale factor was given, else None.
    """
    for dim, out, scale in zip(range(-len(sizes), 0), sizes, scales, strict=True):
        size = x.shape[dim]
        ratio = quotient(x, size, out)
        if scale is not None:
            step = torch.full((), scale, dtype=torch.float32, device=x.device)
            # torch takes these two without looking at the factor, which floor() has made another ratio.
            plain = (ratio == 1) | (ratio == 0.5)
            ratio = step if exact else torch.where(plain, ratio, step)
        place = torch.arange(out, device=x.device).to(torch.float32)
        index = torch.floor((place + 0.5 if exact else place) * ratio).to(torch.int64)
        x = x.index_select(dim, torch.minimum(index, torch.ones_like(index) * (size - 1)))
    return x


def _as_tensor(number: Any, like: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.float32, device=like.device) * number
