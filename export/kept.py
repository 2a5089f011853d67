"""Memory that a process frees and asks for again: kept for the time of an export.

glibc takes large arrays from the system and gives them back at once, and the system fills each page with zeros: of the
maps of a large picture that is half of a network's processor time.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_memory", "usual_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers that glibc's mallopt knows them by
# Bytes: of an array that is still kept, and of what is kept at the end of the memory at most (an int's largest).
_KEPT, _KEPT_IN_ALL = 2**30, 2**31 - 1
_USUAL, _USUAL_IN_ALL = 2**25, 2**26  # what glibc comes to by itself where large arrays are freed
_LOCK = threading.Lock()
_HELD = [0]  # exports within


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, what this process frees stays with it for the next array, and is given back at the end. Where the C
    library is another than glibc nothing changes."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    with _LOCK:
        _HELD[0] += 1
        _set(library, _KEPT, _KEPT_IN_ALL)
    try:
        yield
    finally:
        with _LOCK:
            _HELD[0] -= 1
            if not _HELD[0]:
                _set(library, _USUAL, _USUAL_IN_ALL)
                library.malloc_trim(0)


@contextmanager
def usual_memory() -> Iterator[None]:
    """Inside, memory is taken and given back as in any other process: what a picture takes is then what it takes where
    nothing is kept."""
    with _LOCK:
        library = ctypes.CDLL(None) if _HELD[0] else None
        if library is not None:
            library.malloc_trim(0)
            _set(library, _USUAL, _USUAL_IN_ALL)
    try:
        yield
    finally:
        with _LOCK:
            if library is not None and _HELD[0]:
                _set(library, _KEPT, _KEPT_IN_ALL)


def _set(library: ctypes.CDLL, array: int, in_all: int) -> None:
    library.mallopt(_MMAP_THRESHOLD, array)
    library.mallopt(_TRIM_THRESHOLD, in_all)
