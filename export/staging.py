"""Files of an export stand in a folder beside their destination until all of them are known to be right.

They are then moved to their names together: where one cannot be moved, those that were there before are put back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clusir.errors import ExportError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: what a killed export leaves behind stays until the user removes it
    fcntl = None

__all__ = ["staged"]

_PREFIX, _LOCK, _FORMER = ".clusir-", ".lock", ".former"


@contextmanager
def staged(
    destination: Path, keep: Sequence[str] = (), check: Callable[[list[str]], None] = lambda names: None
) -> Iterator[Path]:
    """A folder to write into; its files move to ``destination`` when the block ends well, and vanish when it does not.

    Files named in ``keep`` (relative; it may grow inside the block) move even then, for example a report that says why
    validation failed. ``check`` is given the relative names before any of them is moved, and may refuse. What killed
    exports left in ``destination`` is removed.
    """
    destination.mkdir(parents=True, exist_ok=True)
    _remove_dead(destination)
    stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=destination))
    with (stage / _LOCK).open("w") as lock:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            try:
                yield stage
            except BaseException:
                kept = [name for name in dict.fromkeys(keep) if (stage / name).is_file()]
                _move(stage, destination, kept, check)
                raise
            _move(stage, destination, _names(stage), check)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _names(stage: Path) -> list[str]:
    files = (path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    # A manifest names all others: it is moved when they are there.
    names = sorted(path.as_posix() for path in files if path.parts[0] not in (_LOCK, _FORMER))
    return sorted(names, key=lambda name: name == "manifest.json")


def _move(stage: Path, destination: Path, names: Sequence[str], check: Callable[[list[str]], None]) -> None:
    """Move the files to their names below ``destination``: all, or none."""
    check(list(names))
    moved: list[str] = []
    try:
        for name in names:
            target, former = destination / name, stage / _FORMER / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file():
                former.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(target, former)
            os.replace(stage / name, target)
            moved.append(name)
    except OSError as error:
        for done in moved:
            if (stage / _FORMER / done).is_file():
                os.replace(stage / _FORMER / done, destination / done)
            else:
                (destination / done).unlink(missing_ok=True)
        raise ExportError(
            f"{destination / name} cannot be written ({error.strerror or error}); nothing was put in place, "
            "move it away or name another folder"
        ) from error


def _remove_dead(destination: Path) -> None:
    """Delete the folders of exports that were killed: those whose lock nobody holds."""
    if fcntl is None:
        return
    for lock in destination.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError where its export still runs
            shutil.rmtree(lock.parent, ignore_errors=True)
