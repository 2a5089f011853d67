"""Digests of files, computed once for each state of a file: one start asks for those of a bundle up to six times."""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path

__all__ = ["digest_of", "state_of"]

_SETTLED_NS = 2_000_000_000  # a file that was written a moment ago may be written again within one tick of its clock


def digest_of(path: Path, algorithm: str) -> bytes:
    """The digest of a file's bytes by ``algorithm`` (a name of hashlib's). Raises OSError."""
    state = state_of(path.stat())
    if abs(time.time_ns() - max(state[3:])) < _SETTLED_NS:
        return _computed(path, algorithm)
    return _kept(path, algorithm, state)


def state_of(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does: device, inode, size, and the times of its content and of its inode."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=32)
def _kept(path: Path, algorithm: str, state: tuple[int, ...]) -> bytes:
    return _computed(path, algorithm)


def _computed(path: Path, algorithm: str) -> bytes:
    with path.open("rb") as stream:
        # Not a matter of security: files are told apart.
        digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.digest()
