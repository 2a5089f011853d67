"""Models that have never run: what a network caches on its first picture must not decide what the next size gets.

Research code keeps a window, a grid or a mask "once it is known": in ``self``, in a class, in a global, behind
``functools.lru_cache``. Compared with an instance that has run at another size, a wrong file would pass.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections import deque
from typing import Any

from torch import nn

from clusir.export.subjects.user_code import is_users

__all__ = ["Fresh"]

_CONTAINERS = (dict, list, set, deque)
_MISSING = object()


def _restore_container(live: Any, kept: Any) -> None:
    if type(live) is type(kept) and live != kept:
        live.clear()
        (live.update if isinstance(live, (dict, set)) else live.extend)(kept)


class _Space:
    """The names of one module or class as they were, and what its containers held."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.names = dict(vars(owner))
        self.contents = {k: copy.copy(v) for k, v in self.names.items() if type(v) in _CONTAINERS}
        # Looked up without running a __getattr__ of theirs, which may do anything.
        held = [v for v in self.names.values() if not isinstance(v, type)]
        self.caches = [v for v in held if callable(inspect.getattr_static(v, "cache_clear", None))]

    def restore(self) -> None:
        for name, value in list(vars(self.owner).items()):
            if name.startswith("__"):
                continue
            before = self.names.get(name, _MISSING)
            if before is _MISSING:
                delattr(self.owner, name)
            elif before is not value:
                setattr(self.owner, name, before)
        for name, kept in self.contents.items():
            try:
                _restore_container(self.names[name], kept)
            except (ValueError, RuntimeError):  # contents that cannot be compared (tensors, arrays): put back
                self.names[name].clear()
                (self.names[name].update if isinstance(kept, (dict, set)) else self.names[name].extend)(kept)
        for cache in self.caches:
            cache.cache_clear()


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
        self._spaces = [_Space(owner) for owner in (*loaded, *classes)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Fresh:
        return self.of(copy.deepcopy(self.model, memo))

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
        made: nn.Module = copy.deepcopy(self.model, shared)
        return made


def _of_user(cls: type) -> bool:
    return is_users(str(getattr(sys.modules.get(cls.__module__), "__file__", None) or "<unknown>"))
