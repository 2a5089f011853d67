"""Public names of a package, imported when they are first used, so that ``--help`` and ``import`` cost little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names live in its modules.

    ``homes`` maps a module, named from the package (``"files"``, ``"restore.restorer"``) or in full
    (``"clusir.spec"``), to the names it holds, with spaces between them. No name may be that of a module of the
    package, which an import of that module would put in its place.
    """
    found = {name: module for module, names in homes.items() for name in names.split()}

    def getattr_(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = found[name] if found[name].startswith("clusir.") else f"{package}.{found[name]}"
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    def dir_() -> list[str]:
        return sorted(found)

    return getattr_, dir_
