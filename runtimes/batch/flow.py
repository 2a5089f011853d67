"""What the threads of one run hand to each other. Every wait ends when the run is stopped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Channel", "Flow", "GaveUp", "Stopped"]

T = TypeVar("T")
_LOOK_AGAIN_S = 0.5  # on systems where a signal does not end a wait


class Stopped(Exception):
    """The run has been stopped; :attr:`Flow.error` says why."""


class GaveUp(Exception):
    """Nobody takes what goes into this channel any more."""


class Flow:
    """One run: channels made with it can all be called off at once, by any thread and from a signal's handler."""

    def __init__(self) -> None:
        # One condition for all hand-overs: they are few, and whoever waits has one thing to watch. Re-entrant, because
        # a signal's handler may run in a thread that holds it.
        self.changed = threading.Condition(threading.RLock())
        self.error: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """End every wait with :class:`Stopped`. The first error is the one that is remembered."""
        with self.changed:
            if self.error is None:
                self.error = error
            self.changed.notify_all()

    def check(self) -> None:
        """Raises Stopped where the run has been stopped."""
        if self.error is not None:
            raise Stopped

    def start(self, work: Callable[[], None]) -> threading.Thread:
        """Run ``work`` in a thread; what it raises stops the run."""

        def guarded() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:
                self.stop(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait, holding :attr:`changed`, until ``ready()`` holds. Raises Stopped where the run is stopped before."""
        while not ready():
            self.check()
            self.changed.wait(_LOOK_AGAIN_S)


class Channel(Generic[T]):
    """A queue of at most ``size`` items from one thread to another, with an end, and a way back."""

    def __init__(self, flow: Flow, size: int) -> None:
        self._flow, self._size = flow, size
        self._items: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._gave_up = False

    def put(self, item: T) -> None:
        """Hand over ``item`` when there is room. Raises Stopped, or GaveUp where the reader has left."""
        with self._flow.changed:
            self._flow.check()
            self._flow.wait_until(lambda: len(self._items) < self._size or self._gave_up)
            if self._gave_up:
                raise GaveUp
            self._items.append(item)
            self._flow.changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No more items: the reader's loop ends behind the last one, or raises ``error`` at once. Never waits."""
        with self._flow.changed:
            self._ended, self._error = True, error
            self._flow.changed.notify_all()

    def give_up(self) -> None:
        """The reader leaves; whoever puts is told. Never waits."""
        with self._flow.changed:
            self._gave_up = True
            self._items.clear()
            self._flow.changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """The items in order; those that are there also where the run is stopped, so that a picture that only has to
        be written is. Raises Stopped behind them, or the error that the writer ended with."""
        while True:
            with self._flow.changed:
                self._flow.wait_until(lambda: bool(self._items) or self._ended)
                if self._error is not None:
                    raise self._error
                if not self._items:
                    return
                item = self._items.popleft()
                self._flow.changed.notify_all()
            yield item
