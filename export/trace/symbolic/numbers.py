"""Numbers that Python makes of a symbolic size, kept symbolic while tracing.

Python's ``int``, ``float``, ``round``, ``math.sqrt`` and NumPy's ``ceil`` have to return a number, so a tracer pins the
size that they are called on, and the export serves one size. Published restorers write their sizes that way:
``int(h / 2)``, ``round(h * 0.5)``, ``int(np.ceil(h / 8)) * 8``, ``math.sqrt(2 / w)``. While a model is traced, those
names mean symbolic forms of the same values in the modules of the user's code; the code itself is not touched.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from clusir.export.subjects.user_code import code_of, is_users
from clusir.export.trace.loops import Loops, Parts, Steps, Zipped
from clusir.export.trace.symbolic.arrays import call_numpy, grids, holds_symbols, numpy_names, within_torch
from clusir.export.trace.symbolic.constructors import constructors_in
from clusir.export.trace.symbolic.keys import sizes_as_keys
from clusir.export.trace.symbolic.logarithms import log, log2, log10, whole_log2
from clusir.export.trace.symbolic.ordering import counted, ordering, reduced_sizes
from clusir.export.trace.symbolic.tensors import numbers_in
from clusir.export.trace.symbolic.whole import to_whole

__all__ = ["SymbolicFloat", "SymbolicInt", "symbolic_numbers"]

_SYMBOLS = (torch.SymInt, torch.SymFloat)


def _number(given: Any) -> Any:
    """The number in a traced tensor of one size, or of what is made of sizes; anything else as it is."""
    held = numbers_in(given) if isinstance(given, torch.Tensor) and given.numel() == 1 else None
    return given if held is None else held.reshape(-1)[0]


class _Meta(type):
    """Makes a class answer for the Python type it stands for where code asks for a type."""

    stands_for: type
    symbolic: Callable[[Any], Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        given = _number(args[0]) if len(args) == 1 else None
        if isinstance(given, _SYMBOLS):
            return cls.symbolic(given)
        return cls.stands_for(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.stands_for)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.stands_for)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.stands_for

    def __hash__(cls) -> builtins.int:
        return hash(cls.stands_for)


class SymbolicInt(builtins.int, metaclass=_Meta):
    """``int`` that rounds symbolic numbers to symbolic ones, towards zero."""

    dtype = np.dtype(builtins.int)
    stands_for = builtins.int
    symbolic = staticmethod(to_whole)


class SymbolicFloat(builtins.float, metaclass=_Meta):
    """``float`` that leaves symbolic numbers symbolic."""

    dtype = np.dtype(builtins.float)
    stands_for = builtins.float
    symbolic = staticmethod(torch.sym_float)


def _floor(x: Any) -> Any:
    whole = x if isinstance(x, torch.SymInt) else whole_log2(x)
    return math.floor(x) if whole is None else whole


def _ceil(x: Any) -> Any:
    whole = x if isinstance(x, torch.SymInt) else whole_log2(x, up=True)
    return -math.floor(-x) if whole is None else whole


def _round(x: Any, digits: Any = None) -> Any:
    """Half to even, as Python and NumPy round: both neighbours agree but at a half, where the even one is meant."""
    if isinstance(x, torch.SymInt):
        return x
    if digits not in (None, 0):
        return builtins.round(x, digits)
    low, high = _ceil(x - 0.5), math.floor(x + 0.5)
    return low + (high - low) * (low % 2)


def _as_float(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """NumPy's rounding functions return floats."""
    return lambda x: torch.sym_float(function(x))


def _sqrt(x: Any) -> Any:
    return torch._sym_sqrt(torch.sym_float(x))  # type: ignore[attr-defined]


def _aware(real: Callable[..., Any], symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """``real`` for numbers and ``symbolic`` where the first argument is a symbol."""

    def call(*args: Any, **kwargs: Any) -> Any:
        first = _number(args[0]) if args else None
        return symbolic(first, *args[1:], **kwargs) if isinstance(first, _SYMBOLS) else real(*args, **kwargs)

    return call


def _range(loops: Loops) -> Callable[..., Any]:
    """``range``; a loop whose number of turns follows the picture's size is run for all of them at once."""

    def steps(*args: Any) -> Any:
        if not 1 <= len(args) <= 3 or not all(isinstance(a, (builtins.int, torch.SymInt)) for a in args):
            return builtins.range(*args)
        start, stop = (0, args[0]) if len(args) == 1 else args[:2]
        stride = args[2] if len(args) == 3 else 1
        if isinstance(stride, torch.SymInt) or stride not in (1, -1):
            return builtins.range(*args)
        turns = (stop - start) * stride
        return Steps(loops, start, turns, stride) if loops.captures(turns) else builtins.range(*args)

    return steps


def _enumerate(loops: Loops) -> Callable[..., Any]:
    def numbered(things: Any, start: Any = 0) -> Any:
        if isinstance(things, torch.Tensor) and things.dim() and loops.captures(things.shape[0]):
            things = Parts(loops, things, 0)
        if isinstance(things, (Steps, Parts, Zipped)):
            return Zipped((Steps(loops, start, things.turns), things))
        return builtins.enumerate(things, start)

    return numbered


def _zip(*things: Any, strict: bool = False) -> Any:
    walked = any(isinstance(thing, (Steps, Parts, Zipped)) for thing in things)
    return Zipped(things) if walked else builtins.zip(*things, strict=strict)


_MATH: dict[ModuleType, dict[str, Callable[..., Any]]] = {
    math: {
        "sqrt": _sqrt,
        "floor": _floor,
        "ceil": _ceil,
        "trunc": to_whole,
        "pow": lambda x, y: x**y,
        "log2": log2,
        "log": log,
        "log10": log10,
    },
    np: {
        "sqrt": _sqrt,
        "floor": _as_float(_floor),
        "ceil": _as_float(_ceil),
        "round": _as_float(_round),
        "rint": _as_float(_round),
        "trunc": _as_float(to_whole),
        "log2": log2,
        "log": log,
        "log10": log10,
        "maximum": torch.sym_max,
        "minimum": torch.sym_min,
        "int32": to_whole,
        "int64": to_whole,
        "float32": torch.sym_float,
        "float64": torch.sym_float,
    },
}
_NUMBERS = (builtins.int, builtins.float, *_SYMBOLS)


def _of_numpy(real: Callable[..., Any], symbolic: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function of NumPy that takes symbols: ``symbolic`` where all arguments are numbers, else in arrays."""

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not holds_symbols(args, kwargs):
            return real(*args, **kwargs)
        if symbolic is not None and not kwargs and all(isinstance(a, _NUMBERS) for a in args):
            return symbolic(*args)
        if not kwargs and len(args) == 1 and (reduced := reduced_sizes(real, args[0])) is not None:
            return reduced
        return call_numpy(real, args, kwargs)

    return call


def _numpy_type(real: type, symbolic: Callable[[Any], Any]) -> type:
    """A type of NumPy's numbers that leaves symbols symbolic, and is that type where one is asked for."""
    return _Meta(real.__name__, (), {"stands_for": real, "symbolic": staticmethod(symbolic), "dtype": np.dtype(real)})


class _Proxy(ModuleType):
    """A module in which functions understand symbols; everything else is the module's own."""

    def __init__(self, module: ModuleType, names: dict[str, Callable[..., Any]]) -> None:
        super().__init__(module.__name__)
        self.__dict__["_own"] = module
        for name, symbolic in names.items():
            real = getattr(module, name)
            if module is not np:
                self.__dict__[name] = _aware(real, symbolic)
            else:
                self.__dict__[name] = (_numpy_type if isinstance(real, type) else _of_numpy)(real, symbolic)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_own"], name)
        if self.__dict__["_own"] is np and callable(found) and not isinstance(found, type):
            self.__dict__[name] = found = _of_numpy(found)
        return found


def _replacements() -> dict[int, Any]:
    """Objects that a user's module may hold under any name, and what stands for them (by identity)."""
    found: dict[int, Any] = {}
    for module, names in _MATH.items():
        proxy = _Proxy(module, names)
        found[id(module)] = proxy
        known = [*names, *(numpy_names() if module is np else ())]
        found |= {id(getattr(module, name)): getattr(proxy, name) for name in known if not _is_type(module, name)}
        if module is np:
            for name, grid in grids().items():
                proxy.__dict__[name] = grid
                found[id(getattr(np, name))] = grid
    return found


def _types_that_are_only_called(space: dict[str, Any]) -> frozenset[str]:
    """Those of ``int`` and ``float`` with which the functions of a module do nothing but call, annotate, convert arrays
    (``astype(int)``), ask for instances or ask ``type(x) is int``; with ``type`` where they do nothing but call that,
    which the question needs."""
    code = code_of(space)
    return frozenset() if code is None else _only_called_in(code)


@functools.lru_cache(maxsize=1024)  # a network is traced several times, and each time with all that is loaded
def _only_called_in(code: str) -> frozenset[str]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return frozenset()
    otherwise = _used_otherwise(tree, identity=True)
    if not otherwise & {"int", "float", "type"}:
        return frozenset({"int", "float", "type"})
    return frozenset({"int", "float"} - _used_otherwise(tree, identity=False))


def _used_otherwise(tree: ast.AST, identity: bool) -> set[str]:
    """Names with which code does more than call, annotate and compare; ``identity``: ``type(x) is int`` compares, and
    what a module keeps (``kinds = [int]``) counts too, since ``type(x) in kinds`` would see it."""
    fine: set[builtins.int] = set()
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    inside = [n for f in functions for top in (f.body if isinstance(f.body, list) else [f.body]) for n in ast.walk(top)]
    run = list(ast.walk(tree)) if identity else inside
    for node in run:
        if isinstance(node, ast.Call):
            fine.add(id(node.func))
            if getattr(node.func, "attr", getattr(node.func, "id", "")) in ("astype", "map"):
                fine |= {id(arg) for arg in node.args}
            if isinstance(node.func, ast.Name) and node.func.id in _ASKS:
                kinds = [inner for kind in node.args[1:] for inner in ast.walk(kind)]
                fine |= {id(inner) for inner in kinds if getattr(inner, "id", "") != "type"}
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            by_identity = any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops)
            if not by_identity or (identity and all(_asks_type(side) for side in sides)):
                fine |= {id(inner) for inner in sides}
        for name in ("annotation", "returns"):
            if isinstance(written := getattr(node, name, None), ast.AST):
                fine |= {id(inner) for inner in ast.walk(written)}
    return {node.id for node in run if isinstance(node, ast.Name) and id(node) not in fine}


_ASKS = ("isinstance", "issubclass")


def _asks_type(side: ast.AST) -> bool:
    """Whether one side of ``type(x) is int`` is ``int``, ``float`` or ``type`` of one thing."""
    if isinstance(side, ast.Call):
        return isinstance(side.func, ast.Name) and side.func.id == "type" and len(side.args) == 1
    return isinstance(side, ast.Name) and side.id in ("int", "float")


def _type(*args: Any, **kwargs: Any) -> Any:
    """``type``, which says of a number, symbolic or not, what the names ``int`` and ``float`` now mean."""
    if len(args) != 1 or kwargs:
        return builtins.type(*args, **kwargs)
    if isinstance(args[0], torch.SymInt) or builtins.type(args[0]) is builtins.int:
        return SymbolicInt
    if isinstance(args[0], torch.SymFloat) or builtins.type(args[0]) is builtins.float:
        return SymbolicFloat
    return builtins.type(args[0])


def _is_type(module: ModuleType, name: str) -> bool:
    return isinstance(getattr(module, name), type)


@contextlib.contextmanager
def symbolic_numbers(model: nn.Module, loops: Loops | None = None) -> Iterator[None]:
    """Inside, the names above are symbolic in the code of ``model`` and in all user modules that are loaded; ``loops``
    takes those over a symbolic range."""
    loops = Loops() if loops is None else loops
    spaces: dict[builtins.int, dict[str, Any]] = {}
    for part in model.modules():
        forward = getattr(getattr(type(part), "__dict__", {}).get("forward"), "__globals__", {})
        if is_users(str(forward.get("__file__") or "<unknown>")):
            spaces[id(forward)] = forward
    for module in list(sys.modules.values()):
        if is_users(str(getattr(module, "__file__", None) or "<unknown>")):
            spaces[id(module.__dict__)] = module.__dict__
    replaced = _replacements()
    builtin: dict[str, Any] = {"int": SymbolicInt, "float": SymbolicFloat, "round": _aware(round, _round)}
    builtin["type"] = _type
    builtin |= {"range": _range(loops), "enumerate": _enumerate(loops), "zip": _zip}
    builtin |= ordering()
    undo: list[tuple[dict[str, Any], str, Any]] = []
    for space in spaces.values():
        own = replaced | constructors_in(space)
        for name, value in list(space.items()):
            if id(value) in own:
                undo.append((space, name, value))
                space[name] = own[id(value)]
        types = _types_that_are_only_called(space)
        for name, value in builtin.items():
            if name not in space and (name in types or name not in ("int", "float", "type")):
                undo.append((space, name, None))
                space[name] = value
    try:
        with within_torch(), sizes_as_keys(), counted():
            yield
    finally:
        for space, name, value in undo:
            if value is None:
                space.pop(name, None)
            else:
                space[name] = value
