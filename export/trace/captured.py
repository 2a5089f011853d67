"""Torch functions inside and behind a captured loop: reads and writes at its step, arithmetic, what it collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusir.errors import ClusirError, first_line
from clusir.export.trace.carried import Carried, over_time, step_of
from clusir.export.trace.loops import Loop

__all__ = ["evaluate", "holds_carried", "read_at", "write_at"]


def collected(items: list[Any], dim: int, joined: bool) -> Any:
    """``torch.stack`` (or ``cat``) of a list that a captured loop has filled: the values of all its turns."""
    turns = [item.turn for item in items if isinstance(item, Carried)]
    backwards = turns[0] > turns[-1]
    items = items[::-1] if backwards else list(items)
    at = next(i for i, item in enumerate(items) if isinstance(item, Carried))
    loop: Loop = items[at].loop
    if not loop.closed:
        raise loop.refuse("it collects its own values before it has ended")
    if "first" not in loop.alone and at:
        del items[at - 1]  # what the first turn gave when it ran by itself
    parts: list[Tensor] = []
    for item in items:
        if not isinstance(item, Carried):
            parts.append(item[None])
        elif item.turn == loop.last_of_all:
            parts.append(item.series[:-1] if "last" in loop.alone else item.series)
    series = torch.cat(parts) if len(parts) > 1 else parts[0]
    series = series.flip(0) if backwards else series
    axes = series.dim() - 1 if joined else series.dim()
    moved = series.movedim(0, dim % axes)
    return moved.flatten(dim % axes, dim % axes + 1) if joined else moved


def read_at(source: Tensor, index: Any) -> Any:
    """``source[index]`` where one item of the index is a step; NotImplemented where none is."""
    items = list(index) if isinstance(index, tuple) else [index]
    found = [(i, step) for i, item in enumerate(items) if (step := step_of(item)) is not None]
    if not found:
        return NotImplemented
    at, step = found[0]
    loop: Loop = step.loop
    if len(found) > 1:
        raise loop.refuse("an index in which it stands twice")
    items = _without_ellipsis(items, source.dim())
    at = next(i for i, item in enumerate(items) if step_of(item) is not None)
    part: Any = loop.part(source, sum(item is not None for item in items[:at]), step)
    items[at : at + 1] = [None] if isinstance(items[at], slice) else []
    plain = all(isinstance(item, slice) and item == slice(None) for item in items)
    return part if plain else part[tuple(items)]


def _without_ellipsis(items: list[Any], axes: int) -> list[Any]:
    places = [i for i, item in enumerate(items) if item is Ellipsis]
    more = [slice(None)] * (axes - sum(item is not None and item is not Ellipsis for item in items))
    return [*items[: places[0]], *more, *items[places[0] + 1 :]] if places else [*items, *more]


def write_at(target: Tensor, index: Any, value: Any) -> bool:
    """``target[index] = value`` where an item of the index is a step; False where none is."""
    items = list(index) if isinstance(index, tuple) else [index]
    found = [step for item in items if (step := step_of(item)) is not None]
    if not found:
        return False
    if isinstance(value, Carried) and not value.loop.closed:
        value = value.loop.current(value)
    found[0].loop.write(target, tuple(_without_ellipsis(items, target.dim())), value)
    return True


def holds_carried(args: Any) -> bool:
    """Whether arguments of a function hold a value of a captured loop, in lists as well."""
    return any(
        isinstance(a, Carried) or (isinstance(a, (list, tuple)) and holds_carried(a))
        for a in (args.values() if isinstance(args, dict) else args)
    )


_COLLECT = {torch.stack: False, torch.cat: True, torch.concat: True, torch.concatenate: True}


def evaluate(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch function of which some operands are carried by a loop."""
    if func in _COLLECT:
        items = args[0] if args else kwargs["tensors"]
        held = [item for item in items if isinstance(item, Carried)]
        if len(held) > 1 and len({(id(v.loop), v.turn) for v in held}) == len(held) and held[0].turn != held[-1].turn:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return collected(list(items), dim, _COLLECT[func])
    leaves, spec = pytree.tree_flatten((args, kwargs))
    values = [v for v in leaves if isinstance(v, Carried)]
    live = {id(v.loop): v.loop for v in values if not v.loop.closed}
    leaves = [v.last() if isinstance(v, Carried) and v.loop.closed else v for v in leaves]
    if len(live) > 1:
        raise next(iter(live.values())).refuse("one loop within another")
    for loop in live.values():
        leaves = [loop.current(v) if isinstance(v, Carried) else v for v in leaves]
    if not any(isinstance(v, Carried) for v in leaves):  # after the loop a variable is what the last turn left
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return func(*args, **kwargs)
    try:
        return over_time(loop, func, leaves, spec)
    except ClusirError:
        raise
    except Exception as error:
        reason = first_line(error, 160)
        raise loop.refuse(f"{getattr(func, '__name__', func)}: {reason}") from error
