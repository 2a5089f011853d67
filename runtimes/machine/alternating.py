"""The one timing loop: configurations take turns in one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["measure_alternating"]

# Runtimes let their threads spin for a while after a run; the next configuration must not pay for it.
_PAUSE_S = 0.02


def measure_alternating(
    functions: Mapping[str, Callable[[], Any]],
    runs: int,
    warmup: int = 1,
    pause_s: float = _PAUSE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of ``runs`` calls of each function, taking turns; ``warmup`` rounds before are not counted.

    The order turns round every second time, so that no function always follows the same other. With
    ``clock=time.process_time`` processor time is counted, which means something on a busy machine too, where each
    function keeps to one thread.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for turn in range(warmup + runs):
        for name in order if turn % 2 == 0 else reversed(order):
            if len(order) > 1:
                time.sleep(pause_s)
            begin = clock()
            functions[name]()
            if turn >= warmup:
                times[name].append(clock() - begin)
    return times
