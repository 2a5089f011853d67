"""Calls that stop a tracer, replaced while tracing by forms with the same values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clusir.errors import UnsupportedModelError
from clusir.export.subjects.user_code import calling_user_line

__all__ = ["Traceable"]


class Traceable(TorchFunctionMode):
    """Replaces calls that would fix a symbolic size, or read a tensor, by forms with the same values that trace."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.fft.fftfreq, torch.fft.rfftfreq) and isinstance(
            _argument(args, kwargs, 0, "n"), torch.SymInt
        ):
            return _frequencies(func is torch.fft.rfftfreq, *args, **kwargs)
        if func is torch.linspace and isinstance(_argument(args, kwargs, 2, "steps"), torch.SymInt):
            return _linspace(*args, **kwargs)
        if func is Tensor.__setitem__ and _window_of_symbols(args[1]):
            return _assign_window(*args)
        if func is Tensor.__getitem__ and any(_holds_tensor(i) for i in _as_tuple(args[1])):
            raise UnsupportedModelError(
                f"{calling_user_line()}: a window cut out with bounds that the network computes has no fixed shape; "
                "multiply by a mask instead"
            )
        return func(*args, **kwargs)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _frequencies(half: bool, n: Any, d: float = 1.0, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    """torch.fft.fftfreq / rfftfreq of a symbolic length: integers, folded at the middle, over n d."""
    dtype = dtype or torch.get_default_dtype()
    if half:
        bins = torch.arange(n // 2 + 1, device=device)
    else:
        bins = torch.arange(n, device=device)
        bins = torch.where(bins < (n + 1) // 2, bins, bins - n)
    frequencies: Tensor = bins.to(dtype) / (n * d)
    return frequencies


def _linspace(start: Any, end: Any, steps: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    """torch.linspace of a symbolic number of steps (at least 2)."""
    ramp = torch.arange(steps, device=device).to(dtype or torch.get_default_dtype())
    spaced: Tensor = ramp * ((end - start) / (steps - 1)) + start
    return spaced


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _bounds(item: Any) -> tuple[Any, ...]:
    return (item.start, item.stop, item.step) if isinstance(item, slice) else ()


def _holds_tensor(item: Any) -> bool:
    return any(isinstance(b, Tensor) for b in _bounds(item))


def _window_of_symbols(index: Any) -> bool:
    """Whether an index is made of integers, slices and an ellipsis only, with a bound that is symbolic or a tensor."""
    items = _as_tuple(index)
    plain = all(i is Ellipsis or (isinstance(i, (int, torch.SymInt, slice)) and not isinstance(i, bool)) for i in items)
    return plain and any(isinstance(b, (Tensor, torch.SymInt)) for i in items for b in (*_bounds(i), i))


def _assign_window(target: Tensor, index: Any, value: Any) -> None:
    """``target[index] = value`` by a mask made of ranges; bounds may be symbols or one-element tensors."""
    items = list(_as_tuple(index))
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (target.dim() - len(items) + 1)
    inside: Any = None
    dropped = 0
    for dim, item in enumerate(items):
        size = target.shape[dim]
        if isinstance(item, slice) and item == slice(None):
            continue
        along = torch.arange(size, device=target.device)
        if isinstance(item, slice):
            if item.step not in (None, 1):
                raise UnsupportedModelError(
                    f"{calling_user_line()}: a window with a step and symbolic bounds; use step 1"
                )
            part = along >= _bound(item.start, 0, size)
            part = part & (along < _bound(item.stop, size, size))
        else:
            part = along == _bound(item, 0, size)
            dropped += 1
        part = part.view((-1,) + (1,) * (target.dim() - dim - 1))
        inside = part if inside is None else inside & part
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UnsupportedModelError(
            f"{calling_user_line()}: a tensor of many values is written to a window whose bounds are no plain numbers; "
            "only one value can be written there"
        )
    value = value.reshape(()) if isinstance(value, Tensor) else torch.full((), value, dtype=target.dtype)
    target.copy_(torch.where(inside, value.to(target.dtype), target))


def _bound(bound: Any, default: Any, size: Any) -> Any:
    """A slice bound as Python reads it: negative counts from the end; beyond the ends is the end."""
    if bound is None:
        return default
    if isinstance(bound, Tensor):
        bound = bound.reshape(()).to(torch.int64)
        return torch.where(bound < 0, bound + size, bound)
    return bound + size if bound < 0 else bound
