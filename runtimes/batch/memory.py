"""A bound on the memory of the pictures underway, and what each of them takes."""

from __future__ import annotations

import re

from clusir.errors import ImageError, UsageError
from clusir.runtimes.batch.flow import Flow
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.machine.allowed import memory_bytes

__all__ = ["BANDS_UNDERWAY", "MemoryGate", "default_budget", "look_bytes", "look_step", "parse_size", "working_bytes"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LOOK_PIXELS = 16 << 20
BANDS_UNDERWAY = 3


def parse_size(text: str) -> int:
    """Bytes of ``1500M``, ``2G``, ``1.5GiB`` or a plain number (powers of 1024). Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < 1e12:
        raise UsageError(f"memory {text!r} is not a size; write it like 1500M or 2G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def default_budget() -> int:
    """Half of the memory that this process may use."""
    return memory_bytes() // 2


def working_bytes(info: PictureInfo, tile_px: int) -> int:
    """What a picture takes besides its decoded pixels: window, accumulator, bands underway; and all of it once more
    where the format is encoded in one piece."""
    rows = min(info.height, tile_px)
    row_bytes = info.width * info.channels * info.dtype.itemsize
    working = rows * (info.width * 3 * 4 * 3 + row_bytes * (4 + BANDS_UNDERWAY) * 2)
    whole = 0 if info.format in ("PNG", "TIFF") else info.width * info.height * 4
    return working + whole * (1 if info.format in ("JPEG", "BMP") else 3)


def look_bytes(width: int, height: int, pixel_bytes: int, step: int) -> int:
    """What before and after take, every ``step``-th pixel of each: themselves, both in 8-bit RGB, the two as one sheet,
    and that sheet in the encoder (4 bytes a pixel). ``pixel_bytes``: of one pixel before and after together."""
    return -(-width // step) * -(-height // step) * (pixel_bytes + 6 + 6 + 8)


def look_step(width: int, height: int, pixel_bytes: int, room: int) -> int:
    """The least step with which a look has at most 16 million pixels and takes at most ``room`` bytes."""
    step = 1
    while (
        -(-width // step) * -(-height // step) > _LOOK_PIXELS or look_bytes(width, height, pixel_bytes, step) > room
    ) and step < max(width, height):
        step += 1
    return step


class MemoryGate:
    """Admits pictures by the bytes they will take; ``total`` is what they may take together."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def acquire(self, amount: int, flow: Flow) -> None:
        """Wait until ``amount`` bytes fit. Raises ImageError where they never will, Stopped where the run is."""
        if amount > self.total:
            raise ImageError(
                f"it takes about {amount >> 20} MB, {max(self.total, 0) >> 20} MB are left for pictures; raise "
                "--max-memory (a PNG restored to PNG or TIFF needs least: it is read and written in bands)"
            )
        with flow.changed:
            flow.wait_until(lambda: self.used + amount <= self.total)
            self.used += amount

    def release(self, amount: int, flow: Flow) -> None:
        with flow.changed:
            self.used -= amount
            flow.changed.notify_all()
