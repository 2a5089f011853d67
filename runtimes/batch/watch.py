"""``--watch``: pictures that appear or change in a folder, once they have stopped growing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clusir.runtimes.batch.jobs import Job

__all__ = ["watch"]


def watch(
    plan: Callable[[], list[Job]], poll_s: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[list[Job]]:
    """Batches of jobs, for ever: those of ``plan()`` whose file has had the same size and time for a whole poll and was
    not handed out in that state before. Polling works on every file system, network shares included."""
    seen: dict[Path, tuple[int, int] | None] = {}
    handed: dict[Path, tuple[int, int] | None] = {}
    while True:
        ready = []
        jobs = plan()
        for job in jobs:
            state = _state(job.source)
            if seen.get(job.source, ()) == state and handed.get(job.source, ()) != state:
                handed[job.source] = state
                ready.append(job)
            seen[job.source] = state
        if ready:
            yield ready
        sleep(poll_s)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
