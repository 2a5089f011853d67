"""Models that have never run: what a network caches on its first picture must not decide what the next size gets.

Research code keeps a window, a grid or a mask "once it is known": in ``self``, in a class, in a global, behind
``functools.lru_cache``. Compared with an instance that has run at another size, a wrong file would pass.
"""

from __future__ import annotations

import copy
import inspect
import operator
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import nn

from clusir.export.subjects.copies import copied
from clusir.export.subjects.user_code import is_users

__all__ = ["Fresh"]

_CONTAINERS = (dict, list, set, deque)
_MISSING = object()


def _restore_container(live: Any, kept: Any) -> None:
    try:
        if type(live) is not type(kept) or live == kept:
            return
    except (ValueError, RuntimeError):  # contents that cannot be compared (tensors, arrays): put back
        pass
    live.clear()
    (live.update if isinstance(live, (dict, set)) else live.extend)(kept)


def _forgets(value: Any) -> bool:
    """Whether a value is a cached function; looked up without running a ``__getattr__`` of theirs, which may do
    anything."""
    if isinstance(value, type):
        return False
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    spaces = (own, *map(vars, type(value).__mro__))
    # Nearly none has it: looking further takes ten times as long.
    return any("cache_clear" in space for space in spaces) and callable(
        inspect.getattr_static(value, "cache_clear", None)
    )


class _Space:
    """The names of one module or class as they were, and what its containers held; ``known``: containers that another
    one puts back, by their identity."""

    def __init__(self, owner: Any, known: set[int]) -> None:
        self.owner = owner
        self.names = dict(vars(owner))
        held = [v for v in self.names.values() if type(v) in _CONTAINERS and id(v) not in known]
        known.update(map(id, held))
        self.contents = [(v, copy.copy(v)) for v in held]
        self.caches = [v for v in self.names.values() if _forgets(v)]
        self._seen = _Seen(self.names)

    def restore(self) -> None:
        if not self._seen.holds(vars(self.owner)):
            self._restore_names()
            self._seen = _Seen(vars(self.owner))
        for live, kept in self.contents:
            _restore_container(live, kept)
        for cache in self.caches:
            cache.cache_clear()

    def _restore_names(self) -> None:
        for name, value in list(vars(self.owner).items()):
            if name.startswith("__"):
                continue
            before = self.names.get(name, _MISSING)
            if before is _MISSING:
                delattr(self.owner, name)
            elif before is not value:
                setattr(self.owner, name, before)
        for name, value in self.names.items():
            if name not in vars(self.owner) and not name.startswith("__"):
                setattr(self.owner, name, value)


class _Seen:
    """Names and values as they are when nothing is to be put back: of hundreds of modules, which are looked at before
    each run of the model, hardly one has changed."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names, self._values = tuple(names), tuple(names.values())

    def holds(self, names: Mapping[str, Any]) -> bool:
        return (
            len(names) == len(self._names)
            and all(map(operator.is_, names.values(), self._values))
            and all(map(operator.is_, names, self._names))
        )


class Fresh:
    """Makes copies of a model that has never run. ``model`` itself must not be called any more.

    The copies share parameters and own everything else. With each copy, names and containers of the user's loaded
    modules and of the model's classes are put back to what they were, and cached functions forget.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        classes = {c for part in model.modules() for c in type(part).__mro__ if _of_user(c)}
        loaded = [m for m in list(sys.modules.values()) if is_users(str(getattr(m, "__file__", None) or "<unknown>"))]
        for module in loaded:
            classes |= {v for v in vars(module).values() if isinstance(v, type) and _of_user(v)}
        known = set[int]()  # a dictionary that many share (Python's own names) is looked at once
        self._spaces = [_Space(owner, known) for owner in (*loaded, *classes)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Fresh:
        return self.of(copied(self.model, memo))

    def of(self, model: nn.Module) -> Fresh:
        """The same for another form of the model that has not run either."""
        made = object.__new__(Fresh)
        made.model, made._spaces = model, self._spaces
        return made

    def restore(self) -> None:
        """Put names, containers and caches of the user's code back."""
        for space in self._spaces:
            space.restore()

    def make(self) -> nn.Module:
        """A copy that has not run."""
        self.restore()
        shared: dict[int, Any] = {id(p): p for p in self.model.parameters()}
        made: nn.Module = copied(self.model, shared)
        return made


def _of_user(cls: type) -> bool:
    return is_users(str(getattr(sys.modules.get(cls.__module__), "__file__", None) or "<unknown>"))
