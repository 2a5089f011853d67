"""The network, in forward order: config, layers, wavelet, router, experts, frequency, cues, traces, deblur, pooled,
model, checkpoint.

Belongs here: modules of the network and its checkpoints. Not here: losses and the training loop (``training``), what an
exporter needs of it (``export``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.network.checkpoint import load, read_metadata, resolve, save, shipped
    from clusir.network.config import CONFIGS, ModelConfig
    from clusir.network.model import ClusIR, Restoration
    from clusir.network.router import Routing

__all__ = [
    "CONFIGS",
    "ClusIR",
    "ModelConfig",
    "Restoration",
    "Routing",
    "load",
    "read_metadata",
    "resolve",
    "save",
    "shipped",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "checkpoint": "load read_metadata resolve save shipped",
        "config": "CONFIGS ModelConfig",
        "model": "ClusIR Restoration",
        "router": "Routing",
    },
)
