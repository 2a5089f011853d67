"""Packages that a network imports and that are not installed, stood in for while it is read."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["StandIn", "importable"]


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by name and fills them; asked last, so that an installed package comes first. ``used``: whether it
    was asked for one of them."""

    def __init__(self, modules: Mapping[str, Mapping[str, object]]) -> None:
        self._modules, self.used = modules, False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname not in self._modules:
            return None
        package = any(name.startswith(f"{fullname}.") for name in self._modules)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=package)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.used = True
        module.__dict__.update(self._modules[module.__name__])


@contextlib.contextmanager
def importable(modules: Mapping[str, Mapping[str, object]]) -> Iterator[StandIn]:
    """Inside, ``modules`` (what each holds, by its whole name, parents named too) can be imported."""
    finder = StandIn(modules)
    sys.meta_path.append(finder)
    try:
        yield finder
    finally:
        sys.meta_path.remove(finder)
        for name in modules if finder.used else ():
            sys.modules.pop(name, None)
