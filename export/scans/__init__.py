"""Scans that a user describes, and those of a library that only runs on a GPU.

Belongs here: what stands for a function or block that is a linear recurrence. Not here: loops in Python that are one
(``export.trace.loops``), nor how a recurrence is written in ONNX (``export.lowering.scan``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.scans.registry import ScanDescription, clear_scans, register_scan

__all__ = ["ScanDescription", "clear_scans", "register_scan"]

__getattr__, __dir__ = lazy(__name__, {"registry": "ScanDescription clear_scans register_scan"})
