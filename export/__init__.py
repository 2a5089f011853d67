"""From a network to verified files. ``pipeline`` says in which order; each folder is one stage.

Belongs here: what turns a module or a graph into files and compares them. Not here: running the files (``runtimes``),
pictures for calibration (``calibration``), training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.base import GraphPass, Pass, PassResult, Pipeline
    from clusir.export.experts.registry import register_moe
    from clusir.export.formats.bundle import ExportReport, export_bundle
    from clusir.export.module import ModuleExport, export_module
    from clusir.export.pipeline import ExportConfig
    from clusir.export.scans.registry import register_scan

__all__ = [
    "ExportConfig",
    "ExportReport",
    "GraphPass",
    "ModuleExport",
    "Pass",
    "PassResult",
    "Pipeline",
    "export_bundle",
    "export_module",
    "register_moe",
    "register_scan",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "base": "GraphPass Pass PassResult Pipeline",
        "experts.registry": "register_moe",
        "formats.bundle": "ExportReport export_bundle",
        "module": "ModuleExport export_module",
        "pipeline": "ExportConfig",
        "scans.registry": "register_scan",
    },
)
