"""``max``, ``min``, ``sorted``, ``divmod`` and ``len`` of sizes, which Python would compare or count once for all."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["counted", "ordering", "reduced_sizes"]


def _sizes(values: Any) -> bool:
    """Whether values are whole numbers, some of them symbolic."""
    known = builtins.all(isinstance(a, (builtins.int, torch.SymInt)) for a in values)
    return known and builtins.any(isinstance(a, torch.SymInt) for a in values)


def _extreme(real: Callable[..., Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """``max`` or ``min``, which would compare two sizes and take the trace's answer for good."""

    def call(*args: Any, **kwargs: Any) -> Any:
        values = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if kwargs or len(values) < 2 or not _sizes(values):
            return real(*args, **kwargs)
        found = values[0]
        for other in values[1:]:
            found = symbolic(found, other)
        return found

    return call


def _sorted(values: Any, **kwargs: Any) -> Any:
    if not isinstance(values, (tuple, list)) or kwargs.get("key") is not None or len(values) != 2 or not _sizes(values):
        return builtins.sorted(values, **kwargs)
    both = [torch.sym_min(*values), torch.sym_max(*values)]
    return both[::-1] if kwargs.get("reverse") else both


def _divmod(a: Any, b: Any) -> Any:
    symbolic = isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt)
    return (a // b, a % b) if symbolic else builtins.divmod(a, b)


def _len(thing: Any) -> Any:
    """The first of a tensor's sizes, a symbol where that is one."""
    is_axis = isinstance(thing, torch.Tensor) and thing.dim() > 0
    return thing.shape[0] if is_axis else builtins.len(thing)


def ordering() -> dict[str, Callable[..., Any]]:
    """What stands for the builtins in the user's code."""
    return {
        "max": _extreme(builtins.max, torch.sym_max),
        "min": _extreme(builtins.min, torch.sym_min),
        "sorted": _sorted,
        "divmod": _divmod,
        "len": _len,
    }


def reduced_sizes(function: Any, values: Any) -> Any:
    """What NumPy makes one number of, of whole numbers in a tuple or list; None where it is something else."""
    made = _REDUCTIONS.get(getattr(function, "__name__", ""))
    if made is None or not isinstance(values, (tuple, list)) or len(values) < 2 or not _sizes(values):
        return None
    return made(values)


def _numel(size: Any) -> Any:
    found = 1
    for length in size:
        found = found * length
    return found


_REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "prod": _numel,
    "sum": builtins.sum,
    "max": _extreme(builtins.max, torch.sym_max),
    "amax": _extreme(builtins.max, torch.sym_max),
    "min": _extreme(builtins.min, torch.sym_min),
    "amin": _extreme(builtins.min, torch.sym_min),
}


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Inside, ``torch.Size.numel`` multiplies symbols, and symbols have NumPy's ``astype`` and ``item``.

    The method is C, of a type that takes no other and has no heirs: it is put into the type's own names.
    """
    names = gc.get_referents(torch.Size.__dict__)[0]
    kept = names["numel"]
    given = {kind: {"astype": _astype, "item": _item} for kind in (torch.SymInt, torch.SymFloat)}
    added = [(kind, name, f) for kind, more in given.items() for name, f in more.items() if not hasattr(kind, name)]

    def put(method: Any) -> None:
        names["numel"] = method
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(torch.Size))

    put(_numel)
    for kind, name, function in added:
        setattr(kind, name, function)
    try:
        yield
    finally:
        put(kept)
        for kind, name, _ in added:
            delattr(kind, name)


def _astype(symbol: Any, kind: Any, **_: Any) -> Any:
    return torch.sym_int(symbol) if "int" in str(kind) else torch.sym_float(symbol)


def _item(symbol: Any) -> Any:
    return symbol
