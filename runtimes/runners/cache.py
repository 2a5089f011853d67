"""The user's cache folder: what may be made again, kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir(room: str) -> Path | None:
    """The folder ``room`` in ``$CLUSIR_CACHE``, else ``$XDG_CACHE_HOME/clusir``, else ``~/.cache/clusir``; it is made.

    None where ``CLUSIR_CACHE`` is ``off`` or the folder cannot be written.
    """
    named = os.environ.get("CLUSIR_CACHE")
    if named == "off":
        return None
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clusir"
    folder = base / room
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
