"""From a model file and a picture to a restored picture. C++, JavaScript and mobile code lie in ``cpp``, ``web`` and
``mobile``.

Belongs here: what runs where no torch is installed. Not here: making model files (``export``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.restore.restorer import Restorer
    from clusir.runtimes.runners.base import Runner
    from clusir.runtimes.runners.opening import open_runner

__all__ = ["Restorer", "Runner", "open_runner"]

__getattr__, __dir__ = lazy(
    __name__, {"restore.restorer": "Restorer", "runners.base": "Runner", "runners.opening": "open_runner"}
)
