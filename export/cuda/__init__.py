"""The CUDA matrix: what is measured on a card, in which order, and its report.

Belongs here: measurements that need an NVIDIA card. Not here: running a file on one (``runtimes.runners.cuda``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.cuda.matrix import run_matrix
    from clusir.export.cuda.plan import MatrixPlan, MatrixRow
    from clusir.export.cuda.report import MatrixReport

__all__ = ["MatrixPlan", "MatrixReport", "MatrixRow", "run_matrix"]

__getattr__, __dir__ = lazy(
    __name__, {"matrix": "run_matrix", "plan": "MatrixPlan MatrixRow", "report": "MatrixReport"}
)
