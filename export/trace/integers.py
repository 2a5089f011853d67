"""``int(h / 2)`` of a symbolic size, kept symbolic while tracing.

Python's ``int`` has to return a number, so a tracer pins the size that it is called on, and the export serves one
size. Published restorers write their half sizes that way (``torch.roll(x, (int(h / 2), int(w / 2)))`` to centre a
spectrum). While a model is traced, the name ``int`` in the modules of its code means :class:`SymbolicInt`, which
rounds towards zero as ``int`` does; the code itself is not touched.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clusir.export.subjects.user_code import is_users

__all__ = ["SymbolicInt", "symbolic_integers"]


class _Meta(type):
    """Makes the class answer for ``int`` where code asks for a type."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], (torch.SymInt, torch.SymFloat)):
            return torch.sym_int(args[0])
        return builtins.int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, builtins.int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, builtins.int)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is builtins.int

    def __hash__(cls) -> builtins.int:
        return hash(builtins.int)


class SymbolicInt(builtins.int, metaclass=_Meta):
    """``int`` that rounds symbolic numbers to symbolic ones."""


@contextlib.contextmanager
def symbolic_integers(model: nn.Module) -> Iterator[None]:
    """Inside, ``int`` is :class:`SymbolicInt` in the code of ``model`` and in all user modules that are loaded."""
    spaces: dict[builtins.int, dict[str, Any]] = {}
    for part in model.modules():
        forward = getattr(type(part).forward, "__globals__", {})
        if is_users(str(forward.get("__file__") or "<unknown>")):
            spaces[id(forward)] = forward
    for module in list(sys.modules.values()):
        if is_users(str(getattr(module, "__file__", None) or "<unknown>")):
            spaces[id(module.__dict__)] = module.__dict__
    spaces = {key: space for key, space in spaces.items() if "int" not in space}
    for space in spaces.values():
        space["int"] = SymbolicInt
    try:
        yield
    finally:
        for space in spaces.values():
            space.pop("int", None)
