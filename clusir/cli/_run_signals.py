"""Ctrl-C, SIGTERM and a closed terminal end ``clusir-run``: the first one cleanly, within seconds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.runtimes.batch.pipeline import Pipeline

__all__ = ["Signals"]


class Signals:
    """Set :attr:`pipeline` while one may be running: the first signal then stops it, instead of raising somewhere."""

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self._seen = 0

    @contextmanager
    def heard(self) -> Iterator[Signals]:
        """Within the block, the signals are this object's. One that is ignored (nohup) stays so."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, *_: Any) -> None:
        self._seen += 1
        if self._seen == 1 and self.pipeline is not None and self.pipeline.running and not self.pipeline.stop():
            return
        raise KeyboardInterrupt
