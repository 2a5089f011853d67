"""Synthetic degradations of clean photos, numpy only: one file for each place where light or data is degraded
(optics, sensor, camera, weather), and ``recipe``, which chains them.

Belongs here: what a photo may suffer. Not here: where photos come from (``calibration``, ``training``), how a restored
one is judged (``quality``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.degrade.recipe import (
        ALL_KINDS,
        CAMERA_PRESETS,
        FAMILIES,
        FAMILY_NAMES,
        KINDS,
        PRESETS,
        Recipe,
        Step,
        degrade,
        degrade_mixture,
        draw_recipe,
        draw_step,
    )

__all__ = [
    "ALL_KINDS",
    "CAMERA_PRESETS",
    "FAMILIES",
    "FAMILY_NAMES",
    "KINDS",
    "PRESETS",
    "Recipe",
    "Step",
    "degrade",
    "degrade_mixture",
    "draw_recipe",
    "draw_step",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "recipe": "ALL_KINDS CAMERA_PRESETS FAMILIES FAMILY_NAMES KINDS PRESETS Recipe Step degrade degrade_mixture "
        "draw_recipe draw_step"
    },
)
