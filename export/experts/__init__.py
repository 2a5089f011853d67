"""Routed blocks become dense (all experts, weighted by their gates) or conditional (an ``If`` around each expert), and
none of their weights may be missing.

Belongs here: what knows that a block is routed. Not here: passes that hold for any graph (``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.experts.conditional import BranchExperts
    from clusir.export.experts.coverage import check_onnx, check_program
    from clusir.export.experts.dense import DensifyExperts
    from clusir.export.experts.registry import MoEDescription, clear_registry, register_moe, top_k_gate

__all__ = [
    "BranchExperts",
    "DensifyExperts",
    "MoEDescription",
    "check_onnx",
    "check_program",
    "clear_registry",
    "register_moe",
    "top_k_gate",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "conditional": "BranchExperts",
        "coverage": "check_onnx check_program",
        "dense": "DensifyExperts",
        "registry": "MoEDescription clear_registry register_moe top_k_gate",
    },
)
