"""Files that appear whole or not at all, in folders that several processes and machines may write to.

A file is written under a hidden name beside its target, forced to disk, and renamed. The hidden name is
``.NAME.BOOT.RANDOM.clusir-partial``: 64 random bits keep writers apart whatever their machine or container, BOOT names
the start of the machine that wrote it, and the writer holds a lock on the file as long as it lives. What is left behind
is removed by :func:`remove_dead_partials` only where it is known to be dead.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from clusir.errors import ImageError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None

__all__ = ["PARTIAL", "remove_dead_partials", "whole_file", "write_whole"]

PARTIAL = ".clusir-partial"
_NAME = re.compile(r"\..*\.(?P<boot>[0-9a-f]{12})\.[0-9a-f]{16}\.clusir-partial", re.DOTALL)
_OLD_S = 7 * 86400.0  # no picture takes so long; its writer's machine is gone or was started again
_NAME_BYTES = 160  # file systems end at 255


@contextmanager
def whole_file(target: Path, like: Path | None = None) -> Iterator[BinaryIO]:
    """A binary stream whose bytes become ``target`` where the block ends without an exception.

    A file that is replaced keeps its permissions (and its owner, where the system allows it); a link stays a link, and
    what it points to is replaced. A new file is never more open to group and others than ``like``, the file that it
    was made from. Raises OSError; nothing is left behind then.
    """
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    replaced = _status(target)
    if replaced is not None and not stat.S_ISREG(replaced.st_mode):
        raise OSError(errno.EINVAL, "there is a folder, device or pipe of this name", str(target))
    source = _status(like) if like is not None else None
    mode = 0o600 if replaced is not None else 0o666 if source is None else 0o600 | source.st_mode & 0o066
    partial, stream = _create(target, mode)
    try:
        with stream:
            yield stream
            stream.flush()
            if replaced is not None:
                _take_over(stream, replaced)
            os.fsync(stream.fileno())
            if os.name != "nt":  # renamed under its lock, so that no other process takes it for dead
                os.replace(partial, target)
        if os.name == "nt":
            os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, write: Callable[[BinaryIO], Any], what: str, like: Path | None = None) -> Path:
    """Let ``write`` fill ``path`` as :func:`whole_file` does; the folder is made where it is not there.

    ``what`` names the file in the message. Raises ImageError where it cannot be written; nothing is left then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, like) as stream:
            write(stream)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{what} {path} cannot be written ({reason}); check the folder and the disk") from error
    return path


def remove_dead_partials(folder: Path) -> None:
    """Delete what ended writers left half-written in ``folder``: files that nobody holds a lock on and that this
    machine wrote since it was started, or that have not been touched for a week."""
    try:
        names = [n for n in os.listdir(folder) if n.startswith(".") and n.endswith(PARTIAL)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    named = _NAME.fullmatch(path.name)
    handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        ours = named is not None and named["boot"] == _boot() and fcntl is not None
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError where its writer lives
        if ours or time.time() - os.fstat(handle).st_mtime > _OLD_S:
            if os.name != "nt":
                path.unlink()
                return
        else:
            return
    finally:
        os.close(handle)
    path.unlink()


def _create(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    name = target.name
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        partial = target.with_name(f".{name}.{_boot()}.{secrets.token_hex(8)}{PARTIAL}")
        handle = os.open(partial, flags, mode)
        if fcntl is None:
            return partial, os.fdopen(handle, "w+b")
        with contextlib.suppress(OSError):  # a file system without locks: its dead files wait until they are old
            fcntl.flock(handle, fcntl.LOCK_EX)
        found = _status(partial)  # another process may have found it before it was locked
        if found is not None and os.path.samestat(found, os.fstat(handle)):
            return partial, os.fdopen(handle, "w+b")
        os.close(handle)


def _take_over(stream: BinaryIO, replaced: os.stat_result) -> None:
    if os.name == "nt":
        return
    mode = replaced.st_mode & 0o777
    own = os.fstat(stream.fileno())
    if (own.st_uid, own.st_gid) != (replaced.st_uid, replaced.st_gid):
        try:
            os.fchown(stream.fileno(), replaced.st_uid, replaced.st_gid)
        except OSError:
            mode &= 0o707  # what its group was allowed is not for another group
    os.fchmod(stream.fileno(), mode)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@functools.cache
def _boot() -> str:
    """Twelve digits for this machine since it was last started; containers of one machine share them, and its locks."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, ValueError):
        text = f"{platform.node()} {round((time.time() - time.monotonic()) / 60)}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
