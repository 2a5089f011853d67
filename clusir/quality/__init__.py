"""How good a restored picture is: metrics, the quality table, the cluster report, and classical filters on the same
pixels.

Belongs here: comparison with a clean picture. Not here: comparison of two files or runtimes (``export.validate``),
speed and memory (``runtimes.machine``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.quality.baselines import BASELINES
    from clusir.quality.clusters import ClusterReport, cluster_report, label_clusters
    from clusir.quality.evaluate import QualityPlan, QualityRow, QualityTable, quality_table
    from clusir.quality.metrics import psnr, ssim

__all__ = [
    "BASELINES",
    "ClusterReport",
    "QualityPlan",
    "QualityRow",
    "QualityTable",
    "cluster_report",
    "label_clusters",
    "psnr",
    "quality_table",
    "ssim",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "baselines": "BASELINES",
        "clusters": "ClusterReport cluster_report label_clusters",
        "evaluate": "QualityPlan QualityRow QualityTable quality_table",
        "metrics": "psnr ssim",
    },
)
