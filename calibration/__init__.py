"""Where activation ranges come from: sources of pictures, and a drawing that covers degradations and experts.

Belongs here: which pictures a quantiser sees. Not here: what it does with them (``export.quantize``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.calibration.balance import BalanceConfig, Draw, draw_balanced
    from clusir.calibration.base import CalibrationSource, Sample
    from clusir.calibration.coverage import Coverage, measure_coverage
    from clusir.calibration.manifest import Manifest, replay, write_manifest
    from clusir.calibration.photos import PhotoSet, built_in_photos, folder_photos
    from clusir.calibration.sources import FolderSource, PairSource, SyntheticSource, open_source

__all__ = [
    "BalanceConfig",
    "CalibrationSource",
    "Coverage",
    "Draw",
    "FolderSource",
    "Manifest",
    "PairSource",
    "PhotoSet",
    "Sample",
    "SyntheticSource",
    "built_in_photos",
    "draw_balanced",
    "folder_photos",
    "measure_coverage",
    "open_source",
    "replay",
    "write_manifest",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "balance": "BalanceConfig Draw draw_balanced",
        "base": "CalibrationSource Sample",
        "coverage": "Coverage measure_coverage",
        "manifest": "Manifest replay write_manifest",
        "photos": "PhotoSet built_in_photos folder_photos",
        "sources": "FolderSource PairSource SyntheticSource open_source",
    },
)
