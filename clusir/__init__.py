"""ClusIR: all-in-one image restoration with routed experts and frequency modulation, made to ship.

``import clusir`` is cheap: torch and the runtimes are imported when one of the public names needs them.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# ONNX Runtime writes an identifier of the device into the home folder, and may send usage events, from the moment it
# is imported. Who wants that can still say so: ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOMES = {
    "ClusIR": "clusir.network.model",
    "ModelConfig": "clusir.network.model",
    "CONFIGS": "clusir.network.model",
    "ModelSpec": "clusir.spec",
    "Restorer": "clusir.runtimes.restore.restorer",
    "open_runner": "clusir.runtimes",
    "load": "clusir.network.checkpoint",
    "save": "clusir.network.checkpoint",
    "shipped": "clusir.network.checkpoint",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'clusir' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
