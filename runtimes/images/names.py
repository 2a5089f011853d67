"""File names as text. A name on disk may hold bytes that are no text, and commands for a terminal."""

from __future__ import annotations

__all__ = ["as_text", "printable"]


def as_text(name: str) -> str:
    """``name`` in characters that every encoding form of Unicode can hold: other bytes as ``\\xNN``."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def printable(text: str) -> str:
    """``text`` as it may be shown: what is not printable as ``\\xNN``, not obeyed."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    # Python keeps the byte 0xNN of a name that is not UTF-8 as the lone surrogate U+DCNN.
    return f"\\x{code & 0xFF if 0xDC80 <= code <= 0xDCFF else code:02x}"
