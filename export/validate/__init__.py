"""Is a file right? Comparison with PyTorch under the bounds of ``tolerances``, and bisection to the first tensor that
differs.

Belongs here: what says "right". Not here: quality against clean pictures (``quality``, ``export.precision``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.validate.bisect import Divergence, bisect_values
    from clusir.export.validate.parity import ParityCase, ParityRow, check_rows
    from clusir.export.validate.tolerances import TOLERANCES, Tolerance, tolerance

__all__ = [
    "TOLERANCES",
    "Divergence",
    "ParityCase",
    "ParityRow",
    "Tolerance",
    "bisect_values",
    "check_rows",
    "tolerance",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "bisect": "Divergence bisect_values",
        "parity": "ParityCase ParityRow check_rows",
        "tolerances": "TOLERANCES Tolerance tolerance",
    },
)
