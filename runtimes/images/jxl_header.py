"""JPEG XL: what its plug-in for Pillow does not say before it decodes: size, depth, animation, XMP (ISO/IEC 18181)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from clusir.errors import ImageError

__all__ = ["JxlHeader", "read_jxl"]

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True)
class JxlHeader:
    """``bits`` a sample (0 where it is not known), ``xmp`` the packet in its box."""

    width: int
    height: int
    bits: int
    animated: bool
    xmp: bytes | None


class _Bits:
    """Little-endian bits, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ImageError("truncated: its JPEG XL header ends early")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def choose(self, *widths: int) -> int:
        return self.take(widths[self.take(2)])


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        end = len(data) if size == 0 else at + size
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def read_jxl(data: bytes) -> JxlHeader:
    """The header of a JPEG XL file, bare or in boxes. Raises ImageError where there is none."""
    stream, xmp = data, None
    if not data.startswith(b"\xff\x0a"):
        stream = b""
        for kind, body in _boxes(data):
            if kind in (b"jxlc", b"jxlp") and not stream:
                stream = body if kind == b"jxlc" else body[4:]
            elif kind == b"xml ":
                xmp = xmp or body
    if not stream.startswith(b"\xff\x0a"):
        raise ImageError("damaged: it holds no JPEG XL codestream")
    bits = _Bits(stream[2:66])
    width, height = _size(bits)
    depth, animated = 8, False
    if not bits.take(1):  # not all_default
        if bits.take(1):  # extra_fields
            bits.take(3)
            if bits.take(1):
                _size(bits)
            if bits.take(1):  # a preview, whose size is told otherwise: what follows is not looked at
                return JxlHeader(width, height, 0, False, xmp)
            animated = bool(bits.take(1))
        if not animated:
            depth = 0 if bits.take(1) else (8, 10, 12, 0)[bits.take(2)] or 1 + bits.take(6)
    return JxlHeader(width, height, depth, animated, xmp)


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.choose(9, 13, 18, 30) + 1

    height = side()
    ratio = bits.take(3)
    width = side() if not ratio else height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1]
    return width, height
