"""Copies of a network that share nothing of it but what they are told to: its functions and half-done weights too.

``copy.deepcopy`` takes a function for a constant, so that a hook ``lambda m, i, o: self.features.append(o)`` of the
copy writes into the original; and it refuses a tensor that autograd made, as weight norm keeps one in every layer.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch import Tensor, nn

from clusir.export.quiet import replaced

__all__ = ["copied"]

_ALONE = (type, types.ModuleType, str, bytes, int, float, complex, bool, type(None))


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of ``model``; ``memo`` as of ``copy.deepcopy``, by the identity of what is to be shared. What there
    is only one of (a lock, an open file, a generator that runs) is shared."""
    memo = {} if memo is None else memo
    given = dict(memo)
    try:
        return _copied(model, memo)
    except Exception:
        memo.clear()
        memo.update(given)
    memo.update((id(value), value) for value in _held(model, attributes=True) if _is_single(value))
    with ExitStack() as stack:
        for owner in {c for part in model.modules() for c in type(part).__mro__ if "__setstate__" in vars(c)}:
            if not owner.__module__.startswith("torch."):
                stack.enter_context(replaced(owner, "__setstate__", _forgiving(vars(owner)["__setstate__"])))
        return _copied(model, memo)


def _forgiving(setstate: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A class's own ``__setstate__``, or a module's where that one fails: nobody who trains calls it."""

    def put(module: Any, state: Any) -> None:
        try:
            setstate(module, state)
        except Exception:
            nn.Module.__setstate__(module, state)

    return put


def _is_single(value: Any) -> bool:
    """Whether there is no copying ``value``, whatever it holds."""
    if isinstance(value, (Tensor, nn.Module, np.ndarray, dict, list, tuple, set, types.FunctionType)):
        return False
    try:
        copy.copy(value)
    except Exception:
        return True
    return False


def _copied(model: nn.Module, memo: dict[int, Any]) -> Any:
    functions: list[tuple[types.FunctionType, types.FunctionType]] = []
    for value in _held(model):
        if id(value) in memo:
            continue
        if isinstance(value, types.FunctionType) and value.__closure__:
            twin = types.FunctionType(
                value.__code__,
                value.__globals__,
                value.__name__,
                value.__defaults__,
                tuple(types.CellType() for _ in value.__closure__),
            )
            twin.__kwdefaults__ = value.__kwdefaults__
            twin.__dict__.update(value.__dict__)
            functions.append((value, twin))
            memo[id(value)] = twin
    with replaced(Tensor, "__deepcopy__", _detached):
        made = copy.deepcopy(model, memo)
        for value, twin in functions:
            for old, new in zip(value.__closure__ or (), twin.__closure__ or (), strict=True):
                try:
                    content = old.cell_contents
                except ValueError:  # a name that is not bound yet
                    continue
                try:
                    new.cell_contents = copy.deepcopy(content, memo)
                except Exception:  # a file, a lock: there is one of it
                    new.cell_contents = content
    return made


_deepcopy = Tensor.__deepcopy__


def _detached(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """``Tensor.__deepcopy__``, also of what autograd made, wherever an object of theirs keeps it."""
    if tensor.is_leaf:
        made: Tensor = _deepcopy(tensor, memo)
        return made
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone()
    found: Tensor = memo[id(tensor)]
    return found


def _held(model: nn.Module, attributes: bool = False) -> Iterator[Any]:
    """What the parts of a model hold beside parts, parameters and buffers, in containers and closures as well, and in
    the attributes of other objects where they are asked for."""
    seen: set[int] = set()
    stack: list[Any] = [v for part in model.modules() for k, v in vars(part).items() if k != "_modules"]
    while stack:
        value = stack.pop()
        if isinstance(value, _ALONE) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            stack.extend(value)
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                try:
                    stack.append(cell.cell_contents)
                except ValueError:
                    continue
        elif attributes and not isinstance(value, (Tensor, nn.Module)):
            stack.extend(getattr(value, "__dict__", {}).values())
