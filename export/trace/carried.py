"""Values in a captured loop (``trace.loops``): a tensor for every turn at once, and what it owes to the last turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["UNKNOWN", "Carried", "Linear", "Step", "aligned", "over_time", "same_shape", "step_of"]


class _Loop(Protocol):
    turns: Any
    made: int

    def carried(self, series: Tensor, form: Any = None) -> Carried: ...


@dataclass(frozen=True)
class Linear:
    """``factor * state + rest``, element by element, where neither depends on a state that is still open."""

    state: str
    factor: Any
    rest: Any


UNKNOWN = object()  # depends on an open state in another way


class Step:
    """The variable of a loop over a range: ``start + stride * turn``, for all turns at once."""

    def __init__(self, loop: Any, start: Any, stride: int) -> None:
        self.loop, self.start, self.stride = loop, start, stride

    def follows(self, stop: Any) -> bool:
        """Whether ``stop`` is this step and 1."""
        return (
            isinstance(stop, Step)
            and stop.loop is self.loop
            and stop.stride == self.stride
            and (bool(stop.start - self.start == 1))
        )

    def __add__(self, other: Any) -> Any:
        return Step(self.loop, self.start + other, self.stride) if _whole(other) else self._number() + other

    def __sub__(self, other: Any) -> Any:
        return Step(self.loop, self.start - other, self.stride) if _whole(other) else self._number() - other

    def __rsub__(self, other: Any) -> Any:
        return Step(self.loop, other - self.start, -self.stride) if _whole(other) else other - self._number()

    def __neg__(self) -> Step:
        return Step(self.loop, -self.start, -self.stride)

    __radd__ = __add__

    def _number(self) -> Carried:
        """The step as a number, where it is more than an index."""
        count: Tensor = torch.arange(self.loop.turns) * self.stride + self.start
        return self.loop.carried(count)

    def __mul__(self, other: Any) -> Any:
        return self._number() * other

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._number() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._number()

    def __pow__(self, other: Any) -> Any:
        return self._number() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self._number()

    def _refuse(self, *_: Any) -> Any:
        raise self.loop.refuse("what a turn does depends on its number")

    __bool__ = __index__ = __int__ = __float__ = __mod__ = __floordiv__ = __hash__ = _refuse

    def _among(self, sign: str, other: Any) -> bool:
        """Whether turns between the first and the last are ``sign`` (``<``, ``==``, ``>``) ``other``."""
        if not _whole(other):
            return bool(self._refuse())
        sign = sign if self.stride > 0 else {"<": ">", ">": "<", "==": "=="}[sign]
        from_first = _known((other - self.start) * self.stride)
        from_last = _known((other - self.start) * self.stride - (self.loop.turns - 1))
        if from_first is not None and from_first <= 0:
            if from_first == 0:
                self.loop.run_alone("first")
            return sign == ">"
        if from_last is not None and from_last >= 0:
            if from_last == 0:
                self.loop.run_alone("last")
            return sign == "<"
        return bool(self._refuse())

    def __eq__(self, other: object) -> bool:
        return self._among("==", other)

    def __ne__(self, other: object) -> bool:
        return not self._among("==", other)

    def __lt__(self, other: Any) -> bool:
        return self._among("<", other)

    def __gt__(self, other: Any) -> bool:
        return self._among(">", other)

    def __le__(self, other: Any) -> bool:
        return not self._among(">", other)

    def __ge__(self, other: Any) -> bool:
        return not self._among("<", other)


def step_of(item: Any) -> Step | None:
    """The step of an item of an index, ``t`` or ``t : t + 1``."""
    if isinstance(item, Step):
        return item
    if isinstance(item, slice) and isinstance(item.start, Step):
        return item.start if item.step in (None, 1) and item.start.follows(item.stop) else None
    return None


def _whole(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _known(value: Any) -> int | None:
    """A size that is a number whatever the picture's size; None for others."""
    if isinstance(value, torch.SymInt):
        plain = value.node.shape_env.replace(value.node.expr).expand()
        return int(plain) if plain.is_Integer else None
    return int(value)


class Carried:
    """A value of a loop's body for all turns at once: ``series`` has the turns in front.

    ``form``: None where it owes nothing to an open state, else a Linear or UNKNOWN; the series is then only right in
    shape. Used like a tensor: every function and method of it is a function of the series.
    """

    def __init__(self, loop: Any, series: Tensor, form: Any, turn: int, number: int) -> None:
        self.loop, self.series, self.form, self.turn, self.number = loop, series, form, turn, number

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        from clusir.export.trace.captured import evaluate

        return evaluate(func, args, kwargs or {})

    def last(self) -> Tensor:
        """What the last turn left."""
        return self.series[-1]

    @property
    def shape(self) -> Any:
        return self.series.shape[1:]

    def __getattr__(self, name: str) -> Any:
        method = getattr(Tensor, name, None)
        if name.startswith("__") or method is None:
            raise AttributeError(name)
        if not callable(method):
            found = getattr(self.series[0], name)
            return self.transpose(-2, -1) if name == "mT" else self.t() if name == "T" else found
        if name in ("size", "dim", "numel", "is_floating_point", "is_complex", "ndimension"):
            return getattr(self.series[0], name)
        if name in ("item", "tolist", "numpy", "__bool__"):
            raise self.loop.refuse("it reads a value to decide what to do")
        if name.endswith("_") and not name.startswith("_"):
            plain = getattr(Tensor, name[:-1], None)

            def in_place(*args: Any, **kwargs: Any) -> Carried:
                made = self.__torch_function__(plain, (), (self, *args), kwargs)
                self.series, self.form, self.turn, self.number = made.series, made.form, made.turn, made.number
                return self

            return in_place
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __bool__(self) -> bool:
        raise self.loop.refuse("it reads a value to decide what to do")

    def __len__(self) -> int:
        return len(self.series[0])

    def __setitem__(self, index: Any, value: Any) -> None:
        raise self.loop.refuse("it writes into a part of a value")


def _operator(name: str) -> Callable[..., Any]:
    def call(self: Carried, *args: Any) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (), (self, *args), {})

    return call


for (
    _name
) in """add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs getitem lt le gt ge eq ne and
    or invert mod floordiv""".split():  # noqa: SIM905
    setattr(Carried, f"__{_name}__", _operator(f"__{_name}__"))
Carried.__hash__ = object.__hash__  # type: ignore[method-assign]


# -- functions of them -------------------------------------------------------------------------------------------------


def over_time(loop: _Loop, func: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec) -> Any:
    """``func`` for all turns: of the series turn by turn, and of the forms where it is linear in a state."""
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    made, form = loop.made, None
    if any(_is_open(v) for v in leaves):
        form = _form(func, args, kwargs)
        loop.made = made  # the forms' own arithmetic is none of the body's
    at = [i for i, v in enumerate(leaves) if isinstance(v, Carried)]

    def one(*slices: Tensor) -> Any:
        here = list(leaves)
        for i, tensor in zip(at, slices, strict=True):
            here[i] = tensor
        inner, named = pytree.tree_unflatten(here, spec)
        return func(*inner, **named)

    name = _name_of(func)
    if name in _ELEMENTWISE:
        found: Any = _elementwise(one, leaves, at)
    else:
        found = torch.vmap(one)(*(leaves[i].series for i in at))
    return pytree.tree_map_only(Tensor, lambda t: loop.carried(t, form), found)


def _elementwise(one: Callable[..., Any], leaves: list[Any], at: list[int]) -> Any:
    """Broadcasting by hand, the turns in front, which leaves plain operators in the graph."""
    series = [leaves[i].series for i in at]
    ranks = [v.dim() for v in leaves if isinstance(v, Tensor)] + [s.dim() - 1 for s in series]
    most = max(ranks)
    return one(*(aligned(s, most + 1) for s in series))


def aligned(series: Tensor, rank: int) -> Tensor:
    """A series with ones behind the turns, as broadcasting wants it for values of a larger rank."""
    if series.dim() >= rank:
        return series
    return series.reshape(series.shape[:1] + (1,) * (rank - series.dim()) + tuple(series.shape[1:]))


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two shapes are one and the same, whatever the picture's size."""
    if a.dim() != b.dim():
        return False
    return all(_known(n - m) == 0 for n, m in zip(a.shape, b.shape, strict=True))


def _name_of(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "").strip("_")
    return _SAME.get(name, name)


_SAME = {"radd": "add", "rmul": "mul", "multiply": "mul", "div": "truediv", "true_divide": "truediv",
         "divide": "truediv", "subtract": "sub", "negative": "neg"}  # fmt: skip
_ELEMENTWISE = frozenset(
    """add sub rsub mul truediv rtruediv neg exp sigmoid tanh relu silu softplus abs sqrt square pow addcmul lerp clamp
    maximum minimum where log""".split()  # noqa: SIM905
)
_KEPT = ("contiguous", "clone", "float", "detach", "to", "type", "type_as", "double", "dropout")


def _form(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function's result owes to the open state: Linear where that can be told, else UNKNOWN."""
    name = _name_of(func)
    if name in _KEPT:
        return args[0].form if _is_open(args[0]) else UNKNOWN
    if name == "addcmul" and len(args) == 3:
        return _add(_split(args[0]), _times(_split(args[1]), _split(args[2])), kwargs.get("value", 1))
    if name == "lerp" and len(args) == 3 and not _is_open(args[2]) and not kwargs:
        return _add(_times(_split(args[0]), _split(1 - args[2])), _times(_split(args[1]), _split(args[2])))
    if kwargs.keys() - {"alpha"} or not 1 <= len(args) <= 2:
        return UNKNOWN
    parts = [_split(a) for a in args]
    alpha = kwargs.get("alpha", 1)
    if name == "neg":
        return _times(parts[0], _split(-1.0))
    if len(parts) < 2:
        return UNKNOWN
    if name == "add":
        return _add(parts[0], parts[1], alpha)
    if name == "sub":
        return _add(parts[0], parts[1], -alpha)
    if name == "rsub":
        return _add(parts[1], parts[0], -alpha)
    if name == "mul":
        return _times(*parts)
    if name == "truediv" and not _is_open(args[1]):
        return _times(parts[0], _split(1.0 / args[1]))
    return UNKNOWN


def _is_open(value: Any) -> bool:
    return isinstance(value, Carried) and value.form is not None


def _split(value: Any) -> Any:
    """(state, factor, rest) of an operand; state is empty for one that owes nothing to an open state."""
    if not _is_open(value):
        return Linear("", 0.0, value)
    return value.form


def _zero(value: Any) -> bool:
    return isinstance(value, float) and value == 0.0


def _one(value: Any) -> bool:
    return isinstance(value, float) and value == 1.0


def _product(a: Any, b: Any) -> Any:
    if _zero(a) or _zero(b):
        return 0.0
    return b if _one(a) else a if _one(b) else a * b


def _sum(a: Any, b: Any) -> Any:
    return b if _zero(a) else a if _zero(b) else a + b


def _times(a: Any, b: Any) -> Any:
    if a is UNKNOWN or b is UNKNOWN or (a.state and b.state):
        return UNKNOWN
    if not a.state and not b.state:
        return Linear("", 0.0, _product(a.rest, b.rest))
    state, other = (a, b.rest) if a.state else (b, a.rest)
    return Linear(state.state, _product(state.factor, other), _product(state.rest, other))


def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    if a is UNKNOWN or b is UNKNOWN or (a.state and b.state and a.state != b.state):
        return UNKNOWN
    if alpha != 1:
        b = Linear(b.state, _product(b.factor, float(alpha)), _product(b.rest, float(alpha)))
    return Linear(a.state or b.state, _sum(a.factor, b.factor), _sum(a.rest, b.rest))
