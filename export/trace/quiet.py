"""What libraries print while they trace and convert, kept off the terminal without taking it from other threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

__all__ = ["printing_to"]

T = TypeVar("T", bound=TextIO)


class _ThreadStream:
    """Stands for ``sys.stdout`` or ``sys.stderr``: what one thread writes goes elsewhere, the rest where it went."""

    def __init__(self, before: Any, mine: TextIO) -> None:
        self._before, self._mine = before, mine
        self._thread: int | None = threading.get_ident()

    def end(self) -> None:
        """From now on everything goes where it went: another thread may still hold this stream."""
        self._thread = None

    def _stream(self) -> Any:
        return self._mine if threading.get_ident() == self._thread else self._before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def write(self, text: str) -> int:
        written: int = self._stream().write(text)
        return written

    def flush(self) -> None:
        self._stream().flush()


@contextmanager
def printing_to(target: T) -> Iterator[T]:
    """Inside, what this thread prints, to standard output or error, goes to ``target``; ends with the block."""
    before = sys.stdout, sys.stderr
    mine = tuple(_ThreadStream(stream, target) for stream in before)
    sys.stdout, sys.stderr = mine
    try:
        yield target
    finally:
        for stream in mine:
            stream.end()
        # Another thread may have put its own on top: only what is ours is taken away.
        if sys.stdout is mine[0]:
            sys.stdout = before[0]
        if sys.stderr is mine[1]:
            sys.stderr = before[1]
