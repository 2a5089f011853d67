"""From a folder of photos to a checkpoint: config, data, losses, loop and what one run keeps.

Belongs here: everything that changes weights. Not here: the exporter, which training never imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.training.config import FINE_TUNE_DEFAULTS, Stage, TrainConfig, learning_rate
    from clusir.training.data import PhotoSet, draw_batch
    from clusir.training.loop import Progress, resumed_config, train
    from clusir.training.monitor import validate

__all__ = [
    "FINE_TUNE_DEFAULTS",
    "PhotoSet",
    "Progress",
    "Stage",
    "TrainConfig",
    "draw_batch",
    "learning_rate",
    "resumed_config",
    "train",
    "validate",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "config": "FINE_TUNE_DEFAULTS Stage TrainConfig learning_rate",
        "data": "PhotoSet draw_batch",
        "loop": "Progress resumed_config train",
        "monitor": "validate",
    },
)
