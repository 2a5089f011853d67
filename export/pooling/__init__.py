"""Statistics of somebody else's network: what it pools over the whole picture, found and cut out of its graph.

Belongs here: which values are pooled, a tile graph that is given them, a statistics graph that computes them. Not here:
who runs the two (``runtimes.restore.statistics``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.pooling.find import Blocked, Found, Statistic, find_statistics
    from clusir.export.pooling.split import Split, split_statistics

__all__ = ["Blocked", "Found", "Split", "Statistic", "find_statistics", "split_statistics"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "find": "Blocked Found Statistic find_statistics",
        "split": "Split split_statistics",
    },
)
