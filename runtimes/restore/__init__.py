"""Array in, array out, around a runner: tiles, routing, canvas, ``Restorer``.

Belongs here: pure functions of arrays. Not here: files (``images``), many pictures (``batch``), a runtime
(``runners``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.restore.explain import account, explain_lines, routing_levels
    from clusir.runtimes.restore.restorer import ALPHA_MODES, ROUTINGS, Restorer
    from clusir.runtimes.restore.routing import Routing
    from clusir.runtimes.restore.tiling import plan_picture

__all__ = [
    "ALPHA_MODES", "ROUTINGS", "Restorer", "Routing", "account", "explain_lines", "plan_picture", "routing_levels",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "explain": "account explain_lines routing_levels",
        "restorer": "ALPHA_MODES ROUTINGS Restorer",
        "routing": "Routing",
        "tiling": "plan_picture",
    },
)
