"""The HTML page and the comparison pictures of a run.

Belongs here: what people look at. Not here: what programs read (the command's ``--json``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.report.collect import ReportWriter
    from clusir.runtimes.report.compare import write_comparison

__all__ = ["ReportWriter", "write_comparison"]

__getattr__, __dir__ = lazy(__name__, {"collect": "ReportWriter", "compare": "write_comparison"})
