"""Whether the graphs that stand beside a model belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clusir.errors import ModelFormatError
from clusir.spec import ModelSpec

__all__ = ["check_together"]

# What the graphs of one model have in common; ``precision`` may differ (the router stays fp32), ``graph`` does.
_SHARED_FIELDS = (
    "checkpoint_sha256",
    "clusters",
    "experts",
    "top_k",
    "channels",
    "value_range",
    "input_name",
    "families",
)


def check_together(spec: ModelSpec, whole: Path, sidecars: Sequence[tuple[Path, ModelSpec]]) -> None:
    """Raise ModelFormatError where one of ``sidecars`` (the tile graph first, then what it is given by) was exported
    from another checkpoint than ``whole`` of that ``spec``, or for other tiles or statistics."""
    for path, found in sidecars:
        for key in _SHARED_FIELDS:
            if getattr(found, key) != getattr(spec, key):
                raise ModelFormatError(
                    f"model {path}: it was exported from another checkpoint than its model ({key} differs); "
                    "export both again with clusir-export"
                )
        if (found.tile_px, found.size) != (spec.tile_px, spec.size):
            raise ModelFormatError(
                f"model {path}: its tiles are not those of {whole.name}; export both again with clusir-export"
            )
    path = sidecars[0][0]
    takes, gives = (found.statistics for _, found in sidecars)
    if takes != gives:
        raise ModelFormatError(
            f"model {path}: it takes {takes} pooled statistics, its router gives {gives}; "
            "export both again with clusir-export"
        )
