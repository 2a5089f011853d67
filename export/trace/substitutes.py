"""Calls that stop a tracer, replaced while tracing by forms with the same values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.recurrent import gru, lstm
from clusir.export.lowering.whole import padded_whole
from clusir.export.subjects.user_code import calling_user_line
from clusir.export.trace.captured import evaluate, holds_carried, read_at, write_at
from clusir.export.trace.deformable import torchvision_kernel
from clusir.export.trace.indices import INDICES
from clusir.export.trace.loops import Loops, Parts
from clusir.export.trace.resample import (
    adaptive_avg,
    adaptive_max,
    antialiased,
    average,
    average_of_padded,
    is_symbolic,
    is_whole,
    nearest,
)
from clusir.export.trace.rewrites import REWRITES, with_float_tensor
from clusir.export.trace.short_time import SHORT_TIME
from clusir.export.trace.symbolic.arrays import as_tensor, holds_symbols, is_array, without_arrays
from clusir.export.trace.symbolic.constants import READS, Constants
from clusir.export.trace.symbolic.tensors import read_sizes
from clusir.export.trace.symbolic.whole import exact
from clusir.export.trace.windows import Masked, assign_window, holds_tensor_bound, is_mask, window_of_symbols

__all__ = ["Traceable"]


class Traceable(TorchFunctionMode):
    """Replaces calls that would fix a symbolic size, or read a tensor, by forms with the same values that trace."""

    def __init__(self, loops: Loops | None = None, constants: Constants | None = None) -> None:
        super().__init__()
        self._masked = Masked()
        self._loops = Loops() if loops is None else loops
        self._constants = constants

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKES:
            made = as_tensor(*args, **{k: v for k, v in kwargs.items() if k in ("data", "dtype")})
            return func(*args, **kwargs) if made is NotImplemented else made
        if func in READS and self._constants is not None:
            made = self._constants.read(func, *args, **kwargs)
            made = read_sizes(func, args[0]) if made is NotImplemented else made
            return func(*args, **kwargs) if made is NotImplemented else made
        if any(is_array(a) for a in (*args, *kwargs.values())):
            args, kwargs = without_arrays((args, kwargs))
        if func is Tensor.__setitem__:
            return self._write(*args)
        if self._loops.used and (holds_carried(args) or holds_carried(kwargs)):
            return evaluate(func, args, kwargs)
        if func in _UNROLLED and args[0].dim() > 0:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if self._loops.captures(args[0].shape[dim]):
                parts = Parts(self._loops, args[0], dim)
                return iter(parts) if func is Tensor.__iter__ else parts
        if self._masked.holds(args):
            return self._masked.call(func, args, kwargs)
        if func is Tensor.__getitem__:
            return self._read(*args)
        if func in _SELECTS:
            made = _select(*args, **kwargs)
            return func(*args, **kwargs) if made is NotImplemented else made
        args = with_float_tensor(func, args)
        substitute = _KERNELS.get(str(func)) if isinstance(func, _OPERATORS) else _SUBSTITUTES.get(func)
        made = substitute(*args, **kwargs) if substitute is not None else NotImplemented
        if made is not NotImplemented:
            return made
        result = func(*args, **kwargs)
        self._masked.note(func, args, result)
        return result

    def _read(self, source: Tensor, index: Any) -> Any:
        if is_mask(index, source):
            return self._masked.read(source, index)
        if self._loops.used and (part := read_at(source, index)) is not NotImplemented:
            return part
        if holds_tensor_bound(index):
            raise UnsupportedModelError(
                f"{calling_user_line()}: a window cut out with bounds that the network computes has no fixed shape; "
                "multiply by a mask instead"
            )
        part = source[index]
        self._masked.note(Tensor.__getitem__, (source, index), part)
        return part

    def _write(self, target: Tensor, index: Any, value: Any) -> None:
        if self._loops.used and write_at(target, index, value):
            return
        if is_mask(index, target):
            self._masked.write(target, index, value)
        elif window_of_symbols(index) or _plain_window(target, index, value):
            assign_window(target, index, value)
        else:
            target[index] = value


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_UNROLLED = (Tensor.unbind, torch.unbind, Tensor.__iter__)
_SELECTS = (Tensor.select, torch.select)
_MAKES = (torch.tensor, torch.as_tensor, torch.asarray)


def _select(input: Tensor, dim: int, index: Any) -> Any:
    return read_at(input, (slice(None),) * (dim % input.dim()) + (index,))


def _plain_window(target: Tensor, index: Any, value: Any) -> bool:
    """Whether one number is written into a window whose bounds count from the end of an axis of symbolic length, as
    masks of shifted windows are. A chain of such writes would become ScatterND, which OpenVINO does not always read."""
    items = index if isinstance(index, tuple) else (index,)
    plain = all(
        isinstance(i, slice) and not any(isinstance(b, Tensor) for b in (i.start, i.stop, i.step)) for i in items
    )
    if not plain or (isinstance(value, Tensor) and value.numel() != 1):
        return False
    return any(i != slice(None) and is_symbolic(n) for i, n in zip(items, target.shape, strict=False))


# -- ranges and windows of a symbolic length ---------------------------------------------------------------------------


def _frequencies(half: bool) -> Callable[..., Any]:
    def make(n: Any, d: float = 1.0, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        """torch.fft.fftfreq / rfftfreq of a symbolic length: integers, folded at the middle, over n d."""
        if not is_symbolic(n):
            return NotImplemented
        if half:
            bins = torch.arange(n // 2 + 1, device=device)
        else:
            bins = torch.arange(n, device=device)
            bins = torch.where(bins < (n + 1) // 2, bins, bins - n)
        return bins.to(dtype or torch.get_default_dtype()) / (n * d)

    return make


def _linspace(start: Any, end: Any, steps: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    """torch.linspace of a symbolic number of steps (at least 2); from the nearer end, as torch counts."""
    if not is_symbolic(steps):
        return NotImplemented
    dtype = dtype or torch.get_default_dtype()
    place = torch.arange(steps, device=device)
    step = (end - start) / (steps - 1)
    ahead, back = place.to(dtype) * step + start, (steps - 1 - place).to(dtype) * step
    return torch.where(place < steps // 2, ahead, end - back)


def _window(terms: Sequence[float]) -> Callable[..., Any]:
    """A sum of cosines: hann, hamming, blackman."""

    def make(n: Any, periodic: bool = True, *rest: Any, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        if not is_symbolic(n) or rest:
            return NotImplemented
        dtype = dtype or torch.get_default_dtype()
        angle = torch.arange(n, device=device).to(dtype) * (2 * math.pi / (n if periodic else n - 1))
        return sum(((-1) ** k * c * torch.cos(k * angle) for k, c in enumerate(terms)), torch.zeros((), dtype=dtype))

    return make


def _bartlett(n: Any, periodic: bool = True, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    if not is_symbolic(n):
        return NotImplemented
    place = torch.arange(n, device=device).to(dtype or torch.get_default_dtype())
    return 1 - (2 * place / (n if periodic else n - 1) - 1).abs()


# -- pools, sizes, pads ------------------------------------------------------------------------------------------------


def _pair(value: Any, count: int = 2) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count


def _adaptive(pool: Callable[..., Tensor], axes: int) -> Callable[..., Any]:
    def apply(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        target = _pair(output_size, axes)
        if return_indices or all(isinstance(t, int) and t == 1 for t in target):
            return NotImplemented
        if not is_symbolic(target, tuple(input.shape[-axes:])):
            return NotImplemented
        return pool(input, target)

    return apply


def _avg_pool(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
    stride = kernel_size if stride is None or (isinstance(stride, (tuple, list)) and not stride) else stride
    if not is_symbolic(kernel_size, stride):
        return average_of_padded(input, (kernel_size, stride, padding), ceil_mode, count_include_pad, divisor_override)
    if divisor_override is not None or ceil_mode or any(p != 0 for p in _pair(padding)):
        raise UnsupportedModelError(
            f"{calling_user_line()}: a pool whose window follows the picture's size, with padding, ceil_mode or "
            "divisor_override; pad before it"
        )
    return average(input, _pair(kernel_size), _pair(stride))


def _interpolate(input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                 align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                 antialias: bool = False) -> Any:  # fmt: skip
    close = mode in ("nearest", "nearest-exact")
    if is_symbolic(scale_factor):
        wholes = [exact(n * f) for n, f in zip(input.shape[2:], _pair(scale_factor, input.dim() - 2), strict=True)]
        if None not in wholes:  # a quotient of sizes, which leads to a size
            size, scale_factor, recompute_scale_factor = tuple(wholes), None, None
            if not close and not (mode == "area" or antialias):
                return F.interpolate(input, size, mode=mode, align_corners=align_corners)
    if not close and (input.dim() != 4 or not (mode == "area" or antialias)):
        return NotImplemented
    axes = input.dim() - 2
    factors: tuple[Any, ...] = (None,) * axes
    if size is not None:
        sizes = _pair(size, axes)
    else:
        factors = _pair(scale_factor, axes)
        sizes = tuple(torch.sym_int(n * f) if is_symbolic(n) else int(n * f) for n, f in
                      zip(input.shape[2:], factors, strict=True))  # fmt: skip
    known = size is None and not recompute_scale_factor
    scales = tuple(1.0 / f for f in factors) if known else (None,) * axes
    if close:
        whole = all(is_whole(out, n) for out, n in zip(sizes, input.shape[2:], strict=True))
        if whole and (not known or all(float(f).is_integer() for f in factors)):
            return NotImplemented  # Resize picks the same
        return nearest(input, sizes, scales, mode == "nearest-exact")
    if mode == "area":
        return adaptive_avg(input, sizes)
    return antialiased(input, sizes, scales, mode, bool(align_corners))


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Circular padding as slices and a concatenation, an axis at a time; a size that is padded whole gets a name."""
    if mode != "circular":
        whole = padded_whole(input, pad, mode, value) if is_symbolic(pad) else None
        return NotImplemented if whole is None else whole
    for number in range(len(pad) // 2):
        dim, (before, after) = input.dim() - 1 - number, pad[2 * number : 2 * number + 2]
        size = input.shape[dim]
        parts = [input]
        if is_symbolic(before) or before > 0:
            parts.insert(0, input.narrow(dim, size - before, before))
        if is_symbolic(after) or after > 0:
            parts.append(input.narrow(dim, 0, after))
        input = torch.cat(parts, dim) if len(parts) > 1 else input
    return input


# -- convolutions with kernels of their own ----------------------------------------------------------------------------


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
            dilation: Any = 1, groups: Any = 1) -> Any:  # fmt: skip
    """A kernel for each picture, the batch folded into groups: a sum of shifted products, a group at a time."""
    if not is_symbolic(groups):
        return NotImplemented
    (sh, sw), (dh, dw) = _pair(stride), _pair(dilation)
    high, wide = weight.shape[2], weight.shape[3]
    if isinstance(padding, str):
        down, right = (dh * (high - 1), dw * (wide - 1)) if padding == "same" else (0, 0)
        pads = (right // 2, right - right // 2, down // 2, down - down // 2)
    else:
        ph, pw = _pair(padding)
        pads = (pw, pw, ph, ph)
    channels, made = weight.shape[1], weight.shape[0] // groups
    batch = input.shape[0]
    x = F.pad(input, pads)
    x = x.reshape(batch, groups, channels, x.shape[2], x.shape[3])
    kernel = weight.reshape(groups, made, channels, high, wide)
    rows = (x.shape[3] - dh * (high - 1) - 1) // sh + 1
    columns = (x.shape[4] - dw * (wide - 1) - 1) // sw + 1
    total: Any = None
    for i in range(high):
        for j in range(wide):
            part = x[..., i * dh : i * dh + sh * (rows - 1) + 1 : sh, j * dw : j * dw + sw * (columns - 1) + 1 : sw]
            tap = kernel[..., i, j]
            if channels == 1:
                term = part * tap[..., None]
            else:
                term = (tap @ part.reshape(batch, groups, channels, rows * columns)).reshape(
                    batch, groups, made, rows, columns
                )
            total = term if total is None else total + term
    result = total.reshape(batch, weight.shape[0], rows, columns)
    return result if bias is None else result + bias[:, None, None]


def _conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
                      output_padding: Any = 0, groups: Any = 1, dilation: Any = 1) -> Any:  # fmt: skip
    """``output_size=`` of a symbolic size: with the largest output padding that torch takes, then cut."""
    more = _pair(output_padding)
    if not is_symbolic(more):
        return NotImplemented
    most = tuple(max(s, d) - 1 for s, d in zip(_pair(stride), _pair(dilation), strict=True))
    made = F.conv_transpose2d(input, weight, bias, stride, padding, most, groups, dilation)
    high, wide = (made.shape[2 + k] - most[k] + more[k] for k in (0, 1))
    return made[:, :, :high, :wide]


def _set_data(target: Tensor, value: Tensor) -> Any:
    """A network that merges its branches into one convolution does so in every forward. It has run before it is traced,
    so that its parameter holds the sum already; a weight that follows the picture is seen when the file is compared."""
    return None if isinstance(target, nn.Parameter) else NotImplemented


def _new_tensor(like: Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    return torch.tensor(data, dtype=dtype or like.dtype) if holds_symbols((data,), {}) else NotImplemented


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    **REWRITES,
    **SHORT_TIME,
    **INDICES,
    Tensor.new_tensor: _new_tensor,
    Tensor.data.__get__: Tensor.detach,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.fft.fftfreq: _frequencies(False),
    torch.fft.rfftfreq: _frequencies(True),
    torch.gru: gru,
    torch.lstm: lstm,
    torch.linspace: _linspace,
    torch.hann_window: _window((0.5, 0.5)),
    torch.hamming_window: _window((0.54, 0.46)),
    torch.blackman_window: _window((0.42, 0.5, 0.08)),
    torch.bartlett_window: _bartlett,
    F.adaptive_avg_pool2d: _adaptive(adaptive_avg, 2),
    F.adaptive_avg_pool1d: _adaptive(adaptive_avg, 1),
    F.adaptive_max_pool2d: _adaptive(adaptive_max, 2),
    F.adaptive_max_pool1d: _adaptive(adaptive_max, 1),
    F.avg_pool2d: _avg_pool,
    F.interpolate: _interpolate,
    F.pad: _pad,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.conv_transpose2d: _conv_transpose2d,
}

# Of packages that need not be installed, by name.
_KERNELS: dict[str, Callable[..., Any]] = {
    "torchvision.deform_conv2d": torchvision_kernel,
    "torchvision.deform_conv2d.default": torchvision_kernel,
}
