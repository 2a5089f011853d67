"""The end of a run: what each cluster turned out to mean, written into the weights' file."""

from __future__ import annotations

import json
from pathlib import Path

from clusir.network import checkpoint
from clusir.quality.clusters import ClusterReport, centre_crops, cluster_report, model_router
from clusir.training.data import PhotoSet

__all__ = ["label_weights"]

_TOGETHER = 8  # pictures that the network sees at a time


def label_weights(path: Path, photos: PhotoSet, crop_px: int, limit: int) -> ClusterReport | None:
    """Name the clusters of the checkpoint at ``path`` and store the names in it; None where no photo is large enough.

    Every kind of degradation at two severities on centre crops of ``limit`` photos. Training itself never sees these
    labels. Beside the checkpoint: ``clusters.md``, ``clusters.json`` and ``clusters.svg``.
    """
    crops = centre_crops(photos.photos, crop_px, limit)
    if not crops:
        return None
    model = checkpoint.load(path)
    report = cluster_report(model_router(model), crops, draws=2, batch=_TOGETHER)
    metadata = {k: v for k, v in checkpoint.read_metadata(path).items() if k != "config"}
    checkpoint.save(model, path, {**metadata, "cluster_labels": json.dumps(report.labels())})
    report.write(path.parent)
    return report
