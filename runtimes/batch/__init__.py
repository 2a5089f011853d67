"""Many pictures: jobs, journal, memory gate, pipeline, watched folders, Ray Data.

Belongs here: what goes over more than one picture. Not here: reading and writing one (``images``), restoring one
(``restore``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.batch.jobs import Job, plan_jobs
    from clusir.runtimes.batch.journal import Journal
    from clusir.runtimes.batch.memory import MemoryGate, parse_size
    from clusir.runtimes.batch.pipeline import Outcome, Pipeline

__all__ = ["Job", "Journal", "MemoryGate", "Outcome", "Pipeline", "parse_size", "plan_jobs"]

__getattr__, __dir__ = lazy(
    __name__,
    {"jobs": "Job plan_jobs", "journal": "Journal", "memory": "MemoryGate parse_size", "pipeline": "Outcome Pipeline"},
)
