"""What belongs to the process and an export changes: what libraries print and log, and parts of them, left to others.

Of streams and loggers each block takes away what its own thread says; a part of a library is replaced for all. Blocks
of several threads may begin and end in any order: afterwards everything is as it was before the first.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO, TypeVar

__all__ = ["hushed", "printing_to", "replaced", "root_hushed"]

T = TypeVar("T", bound=TextIO)
_LOCK = threading.Lock()
_HELD: dict[tuple[int, str], tuple[Any, int]] = {}  # what stood there before the first block, and how many there are
_RAISED: dict[str, tuple[int, list[int]]] = {}  # logger to its own level and the levels that blocks ask for


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
def printing_to(target: T, streams: Sequence[str] = ("stdout", "stderr")) -> Iterator[T]:
    """Inside, what this thread prints to these ``streams`` of ``sys`` goes to ``target``; ends with the block."""
    with ExitStack() as stack:
        for name in streams:
            stack.enter_context(_replaced(name, target))
        yield target


@contextmanager
def _replaced(name: str, target: TextIO) -> Iterator[None]:
    before = getattr(sys, name)
    mine = _ThreadStream(before, target)
    setattr(sys, name, mine)
    try:
        yield
    finally:
        mine.end()
        # Another thread may have put its own on top: only what is ours is taken away.
        if getattr(sys, name) is mine:
            setattr(sys, name, before)


@contextmanager
def hushed(names: Sequence[str], level: int) -> Iterator[None]:
    """Inside, these loggers of libraries, and those below them, say nothing under ``level``."""
    with _LOCK:
        for name in names:
            own, wanted = _RAISED.setdefault(name, (logging.getLogger(name).level, []))
            wanted.append(level)
            logging.getLogger(name).setLevel(max(wanted))
    try:
        yield
    finally:
        with _LOCK:
            for name in names:
                own, wanted = _RAISED[name]
                wanted.remove(level)
                logging.getLogger(name).setLevel(max(wanted) if wanted else own)
                if not wanted:
                    del _RAISED[name]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, ``value`` is the attribute ``name`` of a module or class, for the whole process."""
    key = (id(owner), name)
    with _LOCK:
        held = vars(owner)[name] if name in vars(owner) else getattr(owner, name)  # a class method as it is written
        before, blocks = _HELD.get(key, (held, 0))
        _HELD[key] = before, blocks + 1
        setattr(owner, name, value)
    try:
        yield
    finally:
        with _LOCK:
            before, blocks = _HELD[key]
            _HELD[key] = before, blocks - 1
            if blocks == 1:
                setattr(owner, name, before)
                del _HELD[key]


class _OtherThreads(logging.Filter):
    """Lets through what other threads log, and errors."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread != self._thread


class _StandIn(logging.Handler):
    """On a root without handlers: does what Python does there, which is to print what no other handler takes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0

    def emit(self, record: logging.LogRecord) -> None:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


_STAND_IN = _StandIn()


@contextmanager
def root_hushed() -> Iterator[None]:
    """Inside, what this thread logs on the root logger itself is dropped unless it is an error.

    The level stays: every logger of the program that has none of its own goes by it. And ``logging.warning`` does not
    find a root without handlers, which it would give one for good.
    """
    root, others = logging.getLogger(), _OtherThreads()
    root.addFilter(others)
    with _LOCK:
        _STAND_IN.blocks += 1
        root.addHandler(_STAND_IN)
    try:
        yield
    finally:
        root.removeFilter(others)
        with _LOCK:
            _STAND_IN.blocks -= 1
            if not _STAND_IN.blocks:
                root.removeHandler(_STAND_IN)
