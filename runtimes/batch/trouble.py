"""What went wrong with a picture, in one line, and whether the disk is to blame."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.batch.jobs import Job

__all__ = ["is_full", "make_folder", "reason_of"]

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FULL_BYTES = 1 << 20


def reason_of(job: Job, error: Exception) -> str:
    """One line that names the file, whatever was raised."""
    if isinstance(error, ClusirError):
        text = str(error)
        return text if text.startswith((str(job.source), str(job.target))) else f"{job.source}: {text}"
    if isinstance(error, MemoryError):
        return f"{job.source}: it does not fit into memory"
    said = (getattr(error, "strerror", None) or str(error) or "no message").splitlines()[0][:200]
    return f"{job.source}: {said if isinstance(error, OSError) else f'{type(error).__name__}: {said}'}"


def is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether ``error`` comes from a disk that has no room for anything any more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            try:
                return shutil.disk_usage(folder).free < _FULL_BYTES
            except OSError:
                return False
        error = error.__cause__
    return False


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: the folder cannot be made ({error.strerror or error})") from error
