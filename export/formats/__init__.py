"""What is written beside ONNX: bundle, ``.ort``, ExecuTorch. Each says what it needs, writes its files, and compares
them in their own runtime.

Belongs here: one file for each format. Not here: changes of the graph itself (``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.formats.bundle import ExportReport, export_bundle
    from clusir.export.formats.executorch import write_executorch
    from clusir.export.formats.extras import check_golden
    from clusir.export.formats.ort_mobile import MobileReport, write_ort_mobile

__all__ = ["ExportReport", "MobileReport", "check_golden", "export_bundle", "write_executorch", "write_ort_mobile"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "bundle": "ExportReport export_bundle",
        "executorch": "write_executorch",
        "extras": "check_golden",
        "ort_mobile": "MobileReport write_ort_mobile",
    },
)
