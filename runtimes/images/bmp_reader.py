"""BMP: bit fields of 16 and 32 bit are taken apart here, all other kinds are Pillow's; and a header's profile."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError

__all__ = ["BmpFields", "read_fields", "read_profile"]

_RGB, _BITFIELDS, _ALPHA_BITFIELDS = 0, 3, 6
_MBED, _LINK = 0x4D424544, 0x4C494E4B


@dataclass(frozen=True)
class BmpFields:
    """A picture of 16 or 32 bits a pixel. ``fields`` are (shift, bits) of red, green, blue, and alpha where it has
    one."""

    width: int
    height: int
    top_down: bool
    bits: int
    offset: int
    fields: tuple[tuple[int, int], ...]
    dpi: tuple[float, float] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if max(bits for _, bits in self.fields) <= 8 else np.uint16)

    @property
    def stride(self) -> int:
        return -(-self.width * self.bits // 32) * 4

    def read(self, path: Path) -> NDArray[Any]:
        """[H,W,3 or 4] of :attr:`dtype`. Raises ImageError where rows are missing."""
        with path.open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.stride * self.height)
        if len(data) < self.stride * self.height:
            raise ImageError(f"truncated: its pixels end in row {len(data) // self.stride} of {self.height}")
        rows = np.frombuffer(data, np.uint8).reshape(self.height, self.stride)[:, : self.width * self.bits // 8]
        words = np.ascontiguousarray(rows).view(f"<u{self.bits // 8}").astype(np.uint32)
        full = int(np.iinfo(self.dtype).max)
        result = np.empty((self.height, self.width, len(self.fields)), self.dtype)
        for i, (shift, bits) in enumerate(self.fields):
            top = (1 << bits) - 1
            value = (words >> shift) & np.uint32(top)
            result[:, :, i] = value if top == full else (value.astype(np.uint64) * full + top // 2) // top
        return result if self.top_down else result[::-1]


def read_fields(path: Path) -> BmpFields | None:
    """The layout of a BMP of 16 or 32 bits a pixel; None for other kinds. Raises ImageError for fields that are no
    colour."""
    with path.open("rb") as stream:
        head = stream.read(138)
    if len(head) < 54:
        return None
    offset, size, width, height, planes, bits, packing = struct.unpack_from("<IIiiHHI", head, 10)
    if size < 40 or bits not in (16, 32) or packing not in (_RGB, _BITFIELDS, _ALPHA_BITFIELDS):
        return None
    if width <= 0 or height == 0 or planes != 1:
        raise ImageError(f"damaged: a BMP of {width}x{height} pixels")
    if offset < 14 + size:
        raise ImageError(f"damaged: its pixels begin at byte {offset}, inside its header of {14 + size}")
    masks: tuple[int, ...] = (0x7C00, 0x3E0, 0x1F, 0) if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0)
    if packing != _RGB:
        count = 4 if size >= 56 or packing == _ALPHA_BITFIELDS else 3
        masks = (*struct.unpack_from(f"<{count}I", head, 54), 0)[:4]
    fields = tuple(_field(mask, bits) for mask in masks if mask)
    if len(fields) < 3 or any(a & b for i, a in enumerate(masks) for b in masks[:i]) or not all(masks[:3]):
        raise ImageError(
            f"a BMP of bit fields {', '.join(f'{m:08X}' for m in masks)} is not read; save it as 24 or 32 bit"
        )
    x, y = struct.unpack_from("<ii", head, 38)
    dpi = (x * 0.0254, y * 0.0254) if x > 0 and y > 0 else None
    return BmpFields(width, abs(height), height < 0, bits, offset, fields, dpi)


def _field(mask: int, bits: int) -> tuple[int, int]:
    shift = (mask & -mask).bit_length() - 1
    count = mask.bit_length() - shift
    if mask >> shift != (1 << count) - 1 or mask.bit_length() > bits or count > 16:
        raise ImageError(f"a BMP of the bit field {mask:08X} is not read; save it as 24 or 32 bit")
    return shift, count


def read_profile(path: Path) -> tuple[bytes | None, str]:
    """(the embedded ICC profile, a note on colours that cannot be kept): version 4 and 5 headers say what numbers
    mean."""
    with path.open("rb") as stream:
        head = stream.read(138)
        if len(head) < 122:
            return None, ""
        size, space = struct.unpack_from("<I", head, 14)[0], struct.unpack_from("<I", head, 70)[0]
        if size < 108:
            return None, ""
        if space == 0:
            ends, gamma = struct.unpack_from("<9I", head, 74), struct.unpack_from("<3I", head, 110)
            said = any(ends) or any(gamma)
            return None, "end points and gamma in its header are left out: colours are taken for sRGB" if said else ""
        if space == _LINK:
            return None, "the profile that it names in another file is left out: colours are taken for sRGB"
        if space == _MBED and size >= 124 and len(head) >= 138:
            at, length = struct.unpack_from("<II", head, 126)
            stream.seek(14 + at)
            icc = stream.read(min(length, 16 << 20))
            if len(icc) == length and icc[36:40] == b"acsp":
                return icc, ""
            return None, "its ICC profile is damaged and left out"
    return None, ""
