"""How many threads a session of ONNX Runtime has on the CPU, and how they wait."""

from __future__ import annotations

from typing import Any

from clusir.runtimes.machine.allowed import cores, thread_limit

__all__ = ["set_threads"]

_SLEEPING_THREADS = 2  # so many sleep while they wait; more were not measured


def set_threads(options: Any, threads: int | None = None) -> None:
    """Set the threads inside an operator in ``options`` (``onnxruntime.SessionOptions``). None, or 0, is one per core,
    fewer where a container or ``taskset`` gives less processor time.

    Decode and encode share the cores with inference, and so may other programs: two threads that wait spinning are no
    faster on an idle machine, and on a busy one they take half as much processor time again.
    """
    threads = threads or thread_limit()
    options.intra_op_num_threads = threads or 0
    spins = (threads or cores()) > _SLEEPING_THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
