"""Decisions about fewer bits: what a layer costs in quality and time, which layers stay float, which file to take.

Belongs here: what measures and chooses. Not here: the arithmetic (``export.quantize``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.precision.advice import Advice, advise
    from clusir.export.precision.frontier import BudgetConfig, search_budget
    from clusir.export.precision.loss import QualityLoss, compare_quality, measure_quality
    from clusir.export.precision.run import PrecisionConfig, PrecisionReport, make_precisions
    from clusir.export.precision.sensitivity import Sensitivity, measure_sensitivity

__all__ = [
    "Advice",
    "BudgetConfig",
    "PrecisionConfig",
    "PrecisionReport",
    "QualityLoss",
    "Sensitivity",
    "advise",
    "compare_quality",
    "make_precisions",
    "measure_quality",
    "measure_sensitivity",
    "search_budget",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "advice": "Advice advise",
        "frontier": "BudgetConfig search_budget",
        "loss": "QualityLoss compare_quality measure_quality",
        "run": "PrecisionConfig PrecisionReport make_precisions",
        "sensitivity": "Sensitivity measure_sensitivity",
    },
)
