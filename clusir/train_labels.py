"""The end of a run: what each cluster turned out to mean, written into the weights' file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusir import checkpoint
from clusir.data import PhotoSet
from clusir.evaluate_clusters import ClusterReport, cluster_report, model_router

__all__ = ["label_weights"]


def label_weights(path: Path, photos: PhotoSet, crop_px: int, limit: int) -> ClusterReport | None:
    """Name the clusters of the checkpoint at ``path`` and store the names in it; None where no photo is large enough.

    Every kind of damage at two severities on centre crops of ``limit`` photos. Training itself never sees these labels.
    Beside the checkpoint: ``clusters.svg`` and ``clusters.json``.
    """
    crops: list[NDArray[np.float32]] = []
    for photo in photos.photos:
        y, x = ((side - crop_px) // 2 for side in photo.shape[:2])
        if min(y, x) >= 0 and len(crops) < limit:
            crops.append(photo[y : y + crop_px, x : x + crop_px].astype(np.float32) / np.float32(255))
    if not crops:
        return None
    model = checkpoint.load(path)
    report = cluster_report(model_router(model), crops, draws=2)
    metadata = {k: v for k, v in checkpoint.read_metadata(path).items() if k != "config"}
    checkpoint.save(model, path, {**metadata, "cluster_labels": json.dumps(report.labels())})
    path.with_name("clusters.svg").write_text(report.to_svg(), "utf-8")
    path.with_name("clusters.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")
    return report
