"""Pictures to judge by: photos as they come, dark and bright and soft ones among them, damaged or not.

What evidence and trust are fitted on, after everything else (:mod:`clusir.training.judge.evidence`,
:mod:`clusir.training.judge.trust`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clusir.degrade.recipe import Recipe
from clusir.network.model import ClusIR
from clusir.network.pooled import PooledStatistics
from clusir.training.data import TONAL, as_taken, draw_training_recipe, soften, to_nchw
from clusir.training.photos import PhotoSet

__all__ = ["JudgedPicture", "draw_pictures", "evidence_statistics", "low_key"]

_COUNTS = (0.4, 0.4, 0.15, 0.05)
_SOFT = 0.5  # of the crops with a camera's noise, as soft as its lens draws
_WINDOWS = (1, 2, 4)  # of a photo, which are judged together
# How crops without haze and darkness were taken, and their shares: what is like a degradation and is none decides how
# often a photo is harmed.
_TAKEN = {"plain": 0.3, "as taken": 0.25, "low key": 0.15, "high key": 0.1, "extreme": 0.2}


@dataclass(frozen=True)
class JudgedPicture:
    """Windows of one photo, NxHxWx3 in 0..1 before the degradation, NxCxHxW after it, and the photo's number."""

    recipe: Recipe
    photo: int
    windows: NDArray[np.float32]
    degraded: Tensor

    def mended(self, kept: frozenset[str] = frozenset()) -> Tensor:
        """What there would be without the degradation but for the families ``kept``, NxCxHxW in 0..1."""
        return to_nchw([self.recipe.apply(window, kept) for window in self.windows])


def draw_pictures(
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
    windows: tuple[int, ...] = _WINDOWS,
) -> Iterator[JudgedPicture]:
    """One picture of each chosen photo; ``weights``: of the kinds of degradation, by which they are drawn."""
    extremes = {id(photos): _extremes(photos, chosen) for photos in {id(p): p for p, _ in chosen}.values()}
    for photos, index in chosen:
        recipe = draw_training_recipe(rng, weights, None, _COUNTS)
        taken = str(rng.choice(list(_TAKEN), p=list(_TAKEN.values())))
        if recipe.families & set(TONAL) or (recipe.steps and taken == "as taken"):
            taken = "plain"
        if taken == "extreme":
            index = int(rng.choice(extremes[id(photos)]))
        crops = np.stack([photos.draw_crop(index, crop_px, rng) for _ in range(int(rng.choice(windows)))])
        if taken == "as taken":
            crops = np.stack([as_taken(crop, rng) for crop in crops])
        elif "camera_noise" in recipe.kinds and rng.random() < _SOFT:
            crops = np.stack([soften(crop, rng) for crop in crops])
        elif taken == "low key":
            crops = low_key(crops, rng.uniform(1.4, 3.0))
        elif taken == "high key":
            crops = 1 - low_key(1 - crops, rng.uniform(1.4, 3.0))
        degraded = [replace(recipe, seed=recipe.seed + k).apply(crop) for k, crop in enumerate(crops)]
        yield JudgedPicture(recipe, index, crops, to_nchw(degraded))


def evidence_statistics(model: ClusIR, degraded: Tensor) -> Tensor:
    """What the evidence head reads of windows NxCxHxW of one picture, taken together as a photo's are."""
    assert model.evidence is not None
    assert model.traces is not None
    assert model.cue is not None
    pooled = PooledStatistics(together=True)
    seen = model.cue.statistics(degraded, model.traces(degraded, pooled), pooled)
    return model.evidence.statistics(degraded, seen, pooled)[0]


def low_key(picture: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """``picture`` [..., 3] in 0..1 as a scene that is dark by nature: few lights, as bright as lights are, in much
    darkness. What was exposed too shortly is dark in its lights too. (Of the negative, and that made a negative again,
    it is a bright scene in which what is black is black, as in haze it is not.)"""
    lit = picture / max(float(picture.max()), 1e-3)
    dark: NDArray[np.float32] = np.rint(lit ** np.float32(exponent) * 255).astype(np.float32) / np.float32(255)
    return dark


def _extremes(photos: PhotoSet, chosen: Sequence[tuple[PhotoSet, int]]) -> list[int]:
    """The tenth of the chosen photos that is darkest and the tenth that is brightest: night, snow, mist."""
    among = {index for theirs, index in chosen if theirs is photos}
    order = sorted(among, key=lambda index: float(photos.photos[index].mean()))
    tenth = max(1, len(order) // 10)
    return order[:tenth] + order[-tenth:]
