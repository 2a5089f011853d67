"""Writes to a part of a tensor whose bounds are symbolic or computed, and reads and writes through a mask.

A write becomes a choice between the old values and the new, ``where(inside, value, target)``: the shape stays what it
was. What a mask picks out has no fixed shape; it is carried at full size with its mask beside it, through element-wise
arithmetic and sums, until it is written back through the same mask, or one that was made of the same tensors.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusir.errors import UnsupportedModelError
from clusir.export.subjects.user_code import calling_user_line

__all__ = ["Masked", "assign_window", "holds_tensor_bound", "is_mask", "window_of_symbols"]


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _bounds(item: Any) -> tuple[Any, ...]:
    return (item.start, item.stop, item.step) if isinstance(item, slice) else ()


def holds_tensor_bound(index: Any) -> bool:
    """Whether a slice of an index has a bound that is a tensor."""
    return any(isinstance(b, Tensor) for i in _as_tuple(index) for b in _bounds(i))


def window_of_symbols(index: Any) -> bool:
    """Whether an index is made of integers, slices and an ellipsis only, with a bound that is symbolic or a tensor."""
    items = _as_tuple(index)
    plain = all(i is Ellipsis or (isinstance(i, (int, torch.SymInt, slice)) and not isinstance(i, bool)) for i in items)
    return plain and any(isinstance(b, (Tensor, torch.SymInt)) for i in items for b in (*_bounds(i), i))


def assign_window(target: Tensor, index: Any, value: Any) -> None:
    """``target[index] = value`` by a mask made of ranges; bounds may be symbols or one-element tensors.

    Many values may be written where every bound is a number or a symbol; slices may have any positive step.
    """
    items = list(_as_tuple(index))
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (target.dim() - len(items) + 1)
    items += [slice(None)] * (target.dim() - len(items))
    many = isinstance(value, Tensor) and value.numel() != 1
    if many:
        value = _with_axes(target, items, value)
    inside: Any = None
    for dim, item in enumerate(items):
        if isinstance(item, slice) and item == slice(None):
            continue
        size = target.shape[dim]
        start, stop, step = _range(item, size)
        along = torch.arange(size, device=target.device)
        part = (along >= start) & (along < stop)
        if step != 1:
            part = part & ((along - start) % step == 0)
        part = part.view((-1,) + (1,) * (target.dim() - dim - 1))
        inside = part if inside is None else inside & part
        if many and value.shape[dim] != 1:
            value = _spread(value, dim, size, start, stop, step)
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=target.dtype, device=target.device)
    elif not many:
        value = value.reshape(())
    target.copy_(torch.where(inside, value.to(target.dtype), target))


def _with_axes(target: Tensor, items: list[Any], value: Tensor) -> Tensor:
    """``value`` with an axis for every axis of ``target``, of length 1 where an integer picks or it is broadcast."""
    if any(isinstance(b, Tensor) for i in items for b in (*_bounds(i), i)):
        raise UnsupportedModelError(
            f"{calling_user_line()}: a tensor of many values is written to a window whose bounds the network computes; "
            "only one value can be written there"
        )
    kept = [dim for dim, item in enumerate(items) if isinstance(item, slice)]
    value = value.reshape((1,) * max(0, len(kept) - value.dim()) + tuple(value.shape))
    for dim in range(target.dim()):
        if dim not in kept:
            value = value.unsqueeze(dim)
    return value


def _range(item: Any, size: Any) -> tuple[Any, Any, Any]:
    """(start, stop, step) within the axis, as Python reads an integer or a slice."""
    if not isinstance(item, slice):
        at = _bound(item, 0, size)
        return at, at + 1, 1
    step = 1 if item.step is None else item.step
    if isinstance(step, (Tensor, torch.SymInt)) or step < 1:
        raise UnsupportedModelError(f"{calling_user_line()}: a window with a computed or negative step")
    return _bound(item.start, 0, size), _bound(item.stop, size, size), step


def _spread(value: Tensor, dim: int, size: Any, start: Any, stop: Any, step: int) -> Tensor:
    """``value`` along ``dim`` at start, start + step, ... of an axis of ``size``, zero elsewhere."""
    if step != 1:
        place = torch.arange(size, device=value.device) - start
        row = torch.clamp(torch.div(place, step, rounding_mode="floor"), min=0)
        row = torch.minimum(row, row.new_full((), 1) * (value.shape[dim] - 1))
        return value.index_select(dim, row)
    pads = [0, 0] * (value.dim() - 1 - dim) + [start, size - start - value.shape[dim]]
    return F.pad(value, pads)


def _bound(bound: Any, default: Any, size: Any) -> Any:
    """A slice bound as Python reads it: negative counts from the end; beyond the ends is the end."""
    if bound is None:
        return default
    if isinstance(bound, Tensor):
        bound = bound.reshape(()).to(torch.int64)
        return torch.where(bound < 0, bound + size, bound)
    return bound + size if bound < 0 else bound


# -- masks -------------------------------------------------------------------------------------------------------------

_ELEMENTWISE = frozenset(
    """add add_ sub sub_ rsub mul mul_ div div_ true_divide neg abs sqrt rsqrt exp log log2 log10 log1p expm1 pow square
    reciprocal sigmoid tanh relu clamp clip clamp_min clamp_max minimum maximum sin cos sign floor ceil round float to
    clone detach softplus gelu silu leaky_relu elu hardtanh relu6 __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__
    remainder fmod __mod__
    __truediv__ __rtruediv__ __pow__ __rpow__ __neg__ __iadd__ __isub__ __imul__ __itruediv__ contiguous""".split()  # noqa: SIM905
)
_RETOLD = frozenset("eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __getitem__".split())  # noqa: SIM905
_FREE = ("dtype", "device", "dim", "is_floating_point", "requires_grad")


def is_mask(index: Any, target: Tensor) -> bool:
    """Whether an index is one boolean tensor that covers the first axes of ``target``."""
    return isinstance(index, Tensor) and index.dtype == torch.bool and 0 < index.dim() <= target.dim()


class Masked:
    """Which tensors stand for what a mask picked out of them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, tuple[Tensor, int, Any]] = {}  # by id: tensor, its version then, what it was made of

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], result: Any) -> None:
        """Remember what a comparison, or a part of a tensor, was made of: code writes the same mask out twice."""
        name = getattr(func, "__name__", "")
        if name in _RETOLD and isinstance(result, Tensor):
            made = (name, *(self._told(a) for a in args))
            self._origins[id(result)] = (result, result._version, made)

    def _told(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return repr(value)
        found = self._origins.get(id(value))
        if found is not None and found[1] == value._version:
            return found[2]
        self._origins[id(value)] = (value, value._version, ("tensor", id(value), value._version))  # alive, so its id is
        return self._origins[id(value)][2]

    def _same(self, one: Tensor, other: Tensor) -> bool:
        return one is other or self._told(one) == self._told(other)

    def read(self, source: Tensor, mask: Tensor) -> Tensor:
        """``source[mask]``, carried as all of ``source``."""
        carried = source.clone()
        self._known[id(carried)] = (carried, mask)
        return carried

    def write(self, target: Tensor, mask: Tensor, value: Any) -> None:
        """``target[mask] = value`` for one value, or for what the same mask picked."""
        inside = mask.reshape(tuple(mask.shape) + (1,) * (target.dim() - mask.dim()))
        if isinstance(value, Tensor) and id(value) in self._known:
            if not self._same(self._known[id(value)][1], mask):
                raise UnsupportedModelError(f"{calling_user_line()}: what one mask picked is written through another")
        elif isinstance(value, Tensor) and value.numel() != 1:
            raise UnsupportedModelError(
                f"{calling_user_line()}: a tensor of many values is written through a mask; write values that the same "
                "mask picked, or use torch.where"
            )
        value = value.to(target.dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=target.dtype)
        target.copy_(torch.where(inside, value, target))

    def holds(self, args: tuple[Any, ...]) -> bool:
        return bool(self._known) and any(isinstance(a, Tensor) and id(a) in self._known for a in args)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of what a mask picked: element by element, or the sum or mean of all of it."""
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name in _FREE:
                return func(*args, **kwargs)
        found = [self._known[id(a)] for a in args if isinstance(a, Tensor) and id(a) in self._known]
        mask = found[0][1]
        others = [a for a in args if isinstance(a, Tensor) and id(a) not in self._known]
        if name in _ELEMENTWISE and all(self._same(m, mask) for _, m in found) and all(o.dim() == 0 for o in others):
            result = func(*args, **kwargs)
            self._known[id(result)] = (result, mask)
            return result
        if name in ("sum", "mean") and len(args) == 1 and not kwargs:
            picked = mask.reshape(tuple(mask.shape) + (1,) * (args[0].dim() - mask.dim())).expand(args[0].shape)
            total = torch.where(picked, args[0], torch.zeros((), dtype=args[0].dtype)).sum()
            return total if name == "sum" else total / picked.sum()
        what = name if isinstance(func, (types.FunctionType, types.BuiltinFunctionType)) else (name or "this")
        raise UnsupportedModelError(
            f"{calling_user_line()}: {what} of what a mask picked out of a tensor, whose size depends on the picture; "
            "use torch.where, or describe the routed block with clusir.export.experts.registry.register_moe"
        )
