"""Sizes that code puts into a tensor and reads back: ``torch.tensor(h / 8).ceil().item()``.

A tracer takes what is read from a tensor for a number that the picture decides. What a tensor was computed from is in
the graph that is being traced; where that is sizes and constants alone, it is computed again with symbols.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from clusir.export.trace.symbolic.arrays import Sizes
from clusir.export.trace.symbolic.constants import node_of, written_elsewhere
from clusir.export.trace.symbolic.whole import to_whole

__all__ = ["numbers_in", "read_sizes"]

_NUMBERS = (bool, int, float, torch.SymInt, torch.SymFloat)
_MOST = 64  # numbers of a tensor that anybody reads sizes from


class _UnknownError(Exception):
    """Something else goes in."""


def numbers_in(tensor: Tensor) -> Any:
    """The numbers of a traced tensor that is computed from sizes and constants, an array of Python's numbers and
    symbols in its shape; None where anything else goes in."""
    mode = get_proxy_mode()
    node = None if mode is None else node_of(tensor, mode.tracer)
    if node is None:
        return None
    known: dict[fx.Node, Any] = {}
    try:
        found = _value(node, known)
    except (_UnknownError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return None if written_elsewhere(known) else found


def read_sizes(func: Callable[..., Any], tensor: Tensor) -> Any:
    """``item``, ``tolist`` or the truth of a tensor of sizes; NotImplemented for other tensors and other reads."""
    held = numbers_in(tensor) if func in (Tensor.item, Tensor.tolist, Tensor.__bool__, torch.is_nonzero) else None
    if held is None or (func is not Tensor.tolist and held.size != 1):
        return NotImplemented
    if func is Tensor.tolist:
        return np.asarray(held).tolist()
    number = held.reshape(-1)[0]
    return number if func is Tensor.item else bool(number != 0)


def _value(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        value = node.meta.get("val")
        if isinstance(value, _NUMBERS):  # a size, or a number made of sizes
            return value
        if node.op != "call_function" or node.target is not operator.getitem:
            known[node] = _typed(_made(node, known), value)
        else:
            known[node] = _value(node.args[0], known)[node.args[1]]  # type: ignore[arg-type]
    return known[node]


def _made(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr" and isinstance(value := node.meta.get("val"), Tensor):
        constant = getattr(value, "constant", None)  # of a fake tensor
        if constant is None or constant.numel() > _MOST:
            raise _UnknownError
        return np.array(constant.tolist(), dtype=object)
    schema = getattr(node.target, "_schema", None)
    make = _MAKE.get(str(schema.name).removeprefix("aten::").rstrip("_")) if schema is not None else None
    if make is None:
        raise _UnknownError
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _value(n, known))
    kinds = ("dtype", "device", "layout", "pin_memory", "memory_format", "non_blocking", "copy")
    return make(*args, **{name: given for name, given in kwargs.items() if name not in kinds})


def _typed(made: Any, value: Any) -> Any:
    """The numbers as whole ones or fractions, as the dtype of the traced ``value`` has them."""
    if isinstance(made, tuple):
        return tuple(_typed(part, val) for part, val in zip(made, value, strict=True))
    array = np.array(made, dtype=object)
    if array.size > _MOST or array.shape != tuple(value.shape):
        raise _UnknownError
    if value.dtype is torch.bool or value.is_complex():
        raise _UnknownError
    convert = torch.sym_float if value.is_floating_point() else to_whole
    return np.array([convert(v) for v in array.flat], dtype=object).reshape(array.shape).view(Sizes)


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _with_alpha(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda x, y, alpha=1: function(x, y * alpha)


def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    found = x / y
    return found if rounding_mode is None else getattr(np, rounding_mode)(found)


def _select(x: Any, dim: int, index: int) -> Any:
    return np.take(x, index, axis=dim)


def _slice(x: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, stop, step),)]


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _extreme(pair: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """max and min: of two tensors, of all numbers, or along an axis (without the places)."""

    def apply(x: Any, other: Any = None, keepdim: bool = False) -> Any:
        if isinstance(other, np.ndarray):
            return pair(x, other)
        if other is not None:
            raise _UnknownError
        return pair.reduce(np.asarray(x).reshape(-1).view(Sizes))  # type: ignore[attr-defined]

    return apply


def _sum(x: Any, *_: Any) -> Any:
    if _:
        raise _UnknownError
    return np.asarray(x).sum()


def _prod(x: Any, *_: Any) -> Any:
    if _:
        raise _UnknownError
    return np.asarray(x).prod()


_MAKE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ["to", "_to_copy", "detach", "clone", "lift_fresh_copy", "lift_fresh", "alias", "contiguous"], _same
    ),
    "scalar_tensor": _same,
    "full": lambda shape, number: np.full(shape, number, dtype=object),
    "stack": lambda parts, dim=0: np.stack(parts, dim),
    "cat": lambda parts, dim=0: np.concatenate(parts, dim),
    "unbind": lambda x, dim=0: tuple(np.moveaxis(x, dim, 0)),
    "select": _select,
    "slice": _slice,
    "flip": np.flip,
    "reshape": np.reshape,
    "view": np.reshape,
    "unsqueeze": np.expand_dims,
    "add": _with_alpha(operator.add),
    "sub": _with_alpha(operator.sub),
    "rsub": _with_alpha(lambda x, y: y - x),
    "mul": operator.mul,
    "div": _div,
    "true_divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "ceil": np.ceil,
    "floor": np.floor,
    "round": np.rint,
    "trunc": np.trunc,
    "sqrt": np.sqrt,
    "log2": np.frompyfunc(lambda x: torch._sym_log2(torch.sym_float(x)), 1, 1),  # type: ignore[attr-defined]
    "maximum": np.maximum,
    "minimum": np.minimum,
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda x, high: np.minimum(x, high),
    "sum": _sum,
    "prod": _prod,
}
