"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from clusir.errors import ImageError

__all__ = ["write_whole"]


def write_whole(path: Path, write: Callable[[Path], None], what: str) -> Path:
    """Let ``write`` fill a file beside ``path`` and rename it to ``path``; the folder is made where it is not there.

    ``what`` names the file in the message. Raises ImageError where it cannot be written; nothing is left then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ImageError(f"{what} {path} cannot be written ({error}); check the folder and the disk") from error
    return path
