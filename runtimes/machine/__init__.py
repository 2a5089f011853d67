"""What this machine is, what runs on it, and how fast.

Belongs here: facts and measurements of a machine. Not here: quality of pictures (``clusir.quality``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.machine.diagnose import Diagnosis
    from clusir.runtimes.machine.measure import Case, Measurement, bench_case, bench_cases
    from clusir.runtimes.machine.probe import list_devices

__all__ = ["Case", "Diagnosis", "Measurement", "bench_case", "bench_cases", "list_devices"]

__getattr__, __dir__ = lazy(
    __name__,
    {"diagnose": "Diagnosis", "measure": "Case Measurement bench_case bench_cases", "probe": "list_devices"},
)
