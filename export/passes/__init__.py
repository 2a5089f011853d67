"""Graph passes, one file each; ``order`` lists them in the order in which they run.

Belongs here: what makes a graph smaller or faster and keeps its numbers. Not here: fewer bits (``export.quantize``),
what knows about experts (``export.experts``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.passes.order import fusing_passes
    from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph

__all__ = ["AttachMetadata", "CheckStandard", "SimplifyGraph", "fusing_passes"]

__getattr__, __dir__ = lazy(
    __name__, {"order": "fusing_passes", "simplify": "AttachMetadata CheckStandard SimplifyGraph"}
)
