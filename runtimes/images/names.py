"""What names say: as text, and which files are comparisons.

A name on disk may hold bytes that are no text, and commands for a terminal.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["COMPARISON_MARK", "COMPARISON_SUFFIX", "as_text", "is_comparison", "printable"]

COMPARISON_SUFFIX = ".compare.jpg"
# The comment of every comparison: a picture that a user calls so is not taken for one, nor overwritten by one.
COMPARISON_MARK = b"clusir comparison: before | after"


def is_comparison(path: Path) -> bool:
    """Whether a file is a comparison that clusir wrote."""
    if not path.name.endswith(COMPARISON_SUFFIX):
        return False
    try:
        with path.open("rb") as stream:
            return COMPARISON_MARK in stream.read(1 << 16)
    except OSError:
        return False


def as_text(name: str) -> str:
    """``name`` in characters that every encoding form of Unicode can hold: other bytes as ``\\xNN``."""
    return re.sub("[\ud800-\udfff]", lambda match: _escaped(match[0]), name)


def printable(text: str) -> str:
    """``text`` as it may be shown: what is not printable as ``\\xNN``, not obeyed."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    # Python keeps the byte 0xNN of a name that is not UTF-8 as the lone surrogate U+DCNN.
    return f"\\x{code & 0xFF if 0xDC80 <= code <= 0xDCFF else code:02x}"
