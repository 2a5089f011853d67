"""ClusIR restores degraded photos with a network of clusters and routed experts, and exports such networks.

``import clusir`` is cheap: torch and the runtimes are imported when one of the public names needs them. The rooms
below, lowest first: ``degrade``, ``network``, ``calibration``, ``quality``, ``runtimes``, ``export``, ``training``,
``cli``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.errors import ClusirError
    from clusir.network.checkpoint import load, save, shipped
    from clusir.network.config import CONFIGS, ModelConfig
    from clusir.network.model import ClusIR
    from clusir.runtimes.restore.restorer import Restorer
    from clusir.runtimes.runners.opening import open_runner
    from clusir.spec import ModelSpec

# ONNX Runtime writes an identifier of the device into the home folder, and may send usage events, from the moment it
# is imported. Who wants that can still say so: ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["CONFIGS", "ClusIR", "ClusirError", "ModelConfig", "ModelSpec", "Restorer", "__version__", "load",
           "open_runner", "save", "shipped"]  # fmt: skip

__getattr__, __dir__ = lazy(__name__, {
    "clusir.errors": "ClusirError",
    "clusir.network.checkpoint": "load save shipped",
    "clusir.network.config": "CONFIGS ModelConfig",
    "clusir.network.model": "ClusIR",
    "clusir.runtimes.restore.restorer": "Restorer",
    "clusir.runtimes.runners.opening": "open_runner",
    "clusir.spec": "ModelSpec",
})  # fmt: skip
