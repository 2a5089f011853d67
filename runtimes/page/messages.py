"""Protobuf messages taken apart and put together again, field by field, without a library of theirs."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Field", "fields", "number", "text", "varint"]

Field = tuple[int, "int | bytes", bytes]
"""Number of a field, its value (a varint as int, a fixed one as its bytes), and all of its bytes as they stood."""


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in its order. Raises ValueError for what is no message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _read(message, at)
            yield tag >> 3, value, message[start:at]
            continue
        if wire == 2:
            length, at = _read(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if length > len(message) - at:
            raise ValueError("a field longer than its message")
        yield tag >> 3, message[at : at + length], message[start : at + length]
        at += length


def _read(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a number that does not end")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


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
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes | str) -> bytes:
    """A field that holds a string, bytes or a message."""
    content = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(content)) + content
