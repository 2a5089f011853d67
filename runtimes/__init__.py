"""Artefact to image: runners, tiling, picture files. Nothing here imports torch, except ``torch_runner``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.runtimes.restore.restorer import Restorer
    from clusir.runtimes.runners.base import Runner
    from clusir.runtimes.runners.opening import open_runner

__all__ = ["Restorer", "Runner", "open_runner"]

_HOMES = {
    "Restorer": "clusir.runtimes.restore.restorer",
    "Runner": "clusir.runtimes.runners.base",
    "open_runner": "clusir.runtimes.runners.opening",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``--help`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
