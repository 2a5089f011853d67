"""``torch.Tensor([h, w])`` and its kin: constructors that a tracer does not see, and that ask each size for its value.

They are types, so that code asks for instances of them as well. In modules that call one, its name means a type which
makes the same tensor by ``torch.tensor`` where a symbol is among the numbers.
"""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

import torch

from clusir.export.subjects.user_code import code_of
from clusir.export.trace.symbolic.arrays import holds_symbols

__all__ = ["constructors_in"]

_CALLED = re.compile(r"\b(?:Float|Double|Long|Int)?Tensor\s*\(")
_KINDS = {
    "Tensor": None,
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "LongTensor": torch.int64,
    "IntTensor": torch.int32,
}


class _Meta(type):
    """Makes a class answer for a tensor type, but where it is called with symbols."""

    stands_for: Any
    kind: torch.dtype | None

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not holds_symbols(args, kwargs):
            return cls.stands_for(*args, **kwargs)
        kind = cls.kind or torch.get_default_dtype()
        shape = not isinstance(args[0], (list, tuple)) or isinstance(args[0], torch.Size)
        return torch.empty(*args, dtype=kind) if shape else torch.tensor(args[0], dtype=kind)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.stands_for)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.stands_for)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.stands_for, name)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.stands_for

    def __hash__(cls) -> int:
        return hash(cls.stands_for)


class _Torch(ModuleType):
    """torch, with those types; everything else is its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def _stand_ins() -> dict[int, Any]:
    made = {name: _Meta(name, (), {"stands_for": getattr(torch, name), "kind": kind}) for name, kind in _KINDS.items()}
    module = _Torch("torch")
    module.__dict__.update(made)
    return {id(torch): module, **{id(getattr(torch, name)): stand_in for name, stand_in in made.items()}}


def constructors_in(space: dict[str, Any]) -> dict[int, Any]:
    """What stands for what in a module of the user's, by identity; nothing where it calls none of them."""
    code = code_of(space)
    return _stand_ins() if code is not None and _calls_one(code) else {}


@functools.lru_cache(maxsize=1024)
def _calls_one(code: str) -> bool:
    return _CALLED.search(code) is not None
