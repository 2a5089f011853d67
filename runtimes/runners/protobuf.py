"""Protobuf messages taken apart and put together, field by field, without a library of theirs.

The wire format: https://protobuf.dev/programming-guides/encoding. Bytes are hostile until proven otherwise: no length
is believed that leaves its message.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["LENGTH", "VARINT", "Span", "fields", "number", "read_varint", "spans", "text", "varint"]

VARINT, LENGTH = 0, 2
"""Wire types: a number, and what says its length first (strings, bytes, messages)."""

_FIXED = {1: 8, 5: 4}  # bytes of the other two


class Span(NamedTuple):
    """A field: its number and wire type, where all of it starts, and its content from ``first`` up to ``last``;
    ``value`` of a varint (0 for other types)."""

    number: int
    wire: int
    start: int
    first: int
    last: int
    value: int


def spans(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[Span]:
    """The fields of the message ``data[at:end]``, in its order. Raises ValueError for what is no message."""
    while at < end:
        start = at
        tag, at = read_varint(data, at, end)
        wire, value, first = tag & 7, 0, at
        if wire == VARINT:
            value, at = read_varint(data, at, end)
        elif wire == LENGTH or wire in _FIXED:
            length, first = read_varint(data, at, end) if wire == LENGTH else (_FIXED[wire], at)
            if length > end - first:
                raise ValueError("a field longer than its message")
            at = first + length
        else:
            raise ValueError(f"wire type {wire}")
        yield Span(tag >> 3, wire, start, first, at, value)


def read_varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends. Raises ValueError where that is not before ``end``."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("a number that does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Of each field the number, its value (a varint as int, others as bytes), and all of its bytes as they stood.
    Raises ValueError for what is no message."""
    for span in spans(message, 0, len(message)):
        value = span.value if span.wire == VARINT else message[span.first : span.last]
        yield span.number, value, message[span.start : span.last]


def varint(value: int) -> bytes:
    """``value``, not negative, in groups of seven bits."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(field << 3 | VARINT) + varint(value)


def text(field: int, value: bytes | str) -> bytes:
    """A field that holds a string, bytes or a message."""
    content = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | LENGTH) + varint(len(content)) + content
