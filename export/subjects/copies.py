"""Copies of a network that share nothing of it but what they are told to: its functions and half-done weights too.

``copy.deepcopy`` takes a function for a constant, so that a hook ``lambda m, i, o: self.features.append(o)`` of the
copy writes into the original; and it refuses a tensor that autograd made, as weight norm keeps one in every layer.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from clusir.export.quiet import replaced

__all__ = ["copied"]

_ALONE = (type, types.ModuleType, str, bytes, int, float, complex, bool, type(None))


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of ``model``; ``memo`` as of ``copy.deepcopy``, by the identity of what is to be shared."""
    memo = {} if memo is None else memo
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


def _held(model: nn.Module) -> Iterator[Any]:
    """What the parts of a model hold beside parts, parameters and buffers, in containers and closures as well."""
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
