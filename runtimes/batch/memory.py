"""How much memory there is, how much is used, and a gate that lets pictures in while there is room."""

from __future__ import annotations

import os
import re
import sys
import threading

from clusir.errors import ImageError, UsageError

__all__ = ["MemoryGate", "default_budget", "parse_size", "resident_bytes"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of ``1500M``, ``2G``, ``1.5GiB`` or a plain number (powers of 1024). Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"memory {text!r} is not a size; write it like 1500M or 2G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def resident_bytes() -> int:
    """What this process holds in memory now, by the operating system's count (its peak where only that is known)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):
        pass
    if sys.platform == "win32":
        return 300 << 20  # a guess: interpreter, runtime and the shipped model
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def default_budget() -> int:
    """Half of the machine's memory, or 2 GB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 2 << 30


class MemoryGate:
    """Admits pictures by the bytes they will take; ``total`` is what they may take together."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    def acquire(self, amount: int, stop: threading.Event | None = None) -> None:
        """Wait until ``amount`` bytes fit. Raises ImageError where they never will."""
        if amount > self.total:
            raise ImageError(
                f"it takes about {amount >> 20} MB, {max(self.total, 0) >> 20} MB are left for pictures; raise "
                "--max-memory (a PNG restored to PNG or TIFF needs least: it is read and written in bands)"
            )
        with self._changed:
            while self._used + amount > self.total and not (stop is not None and stop.is_set()):
                self._changed.wait(0.2)
            self._used += amount

    def release(self, amount: int) -> None:
        with self._changed:
            self._used -= amount
            self._changed.notify_all()
