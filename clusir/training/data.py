"""Training data: clean photos in memory, and batches degraded on the fly.

A batch is a pure function of (seed, step, rank): nothing but the step number has to be saved to resume bit-exactly,
and any number of loader threads gives the same stream. Part of each batch is laid out in quads, two photos times two
recipes, so that losses can ask the router to tell degradation from content without a class label. The rest may come
with permissions: what is not permitted to be mended stays in the target.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clusir.degrade.recipe import ALL_KINDS, FAMILIES, FAMILY_NAMES, Recipe, Step, draw_recipe, draw_step
from clusir.training.photos import PhotoSet

__all__ = [
    "DEFAULT_COUNTS",
    "DEFAULT_SEVERITIES",
    "DEFAULT_WEIGHTS",
    "Batch",
    "BatchPlan",
    "PhotoSet",
    "Prefetcher",
    "draw_batch",
    "draw_training_recipe",
    "to_nchw",
]

TONAL = ("haze", "low_light")
"""The families that are mended unasked only on strong evidence: what they look like may be how a place looks."""

_FALSE_ALARMS = (0.02, 0.5)  # the share of absent families of which there seems to be evidence: few, or a trace of many
_EVERYTHING = 0.2  # of what is not restricted may be mended whatever it is
_FILED = 0.6  # of the camera's noisy pictures come as its JPEG files
_MARGIN_PX = 8  # crops are cut this much larger, degraded, then trimmed: JPEG's 8-px grid lands anywhere

DEFAULT_WEIGHTS: dict[str, float] = {
    "noise": 2.6, "poisson_gaussian": 0.8, "jpeg": 2.0, "gaussian_blur": 0.9, "motion_blur": 0.9, "defocus_blur": 0.5,
    "rain": 1.4, "haze": 1.7, "low_light": 1.7,
}  # fmt: skip
"""How often each kind is drawn, relative to the others: families get comparable shares, noise and JPEG the largest."""

DEFAULT_COUNTS = (0.04, 0.68, 0.20, 0.08)
"""The shares of pictures with no degradation, one kind, two, three kinds at a time."""

DEFAULT_SEVERITIES: dict[str, tuple[float, float]] = {"motion_blur": (0.0, 0.6)}
"""The range of severities of the kinds that are not drawn from 0..1. Motion blur of 3 to 13 px: trained on it alone,
200 steps on all lengths to 19 px brought +0.2 dB at 9 px, 200 on 9 px +0.8 (docs/training.md)."""


@dataclass(frozen=True)
class Batch:
    """``degraded`` and ``clean``: Bx3xHxW float32 in 0..1. ``recipe`` and ``photo``: B integers, equal where samples
    share their degradation or their picture; ``names``: the recipes' names, for measuring only, never for a loss.
    ``permissions`` BxF in 0..1: what may be mended; ``clean`` still has the rest of the degradation."""

    degraded: Tensor
    clean: Tensor
    recipe: Tensor
    photo: Tensor
    names: tuple[str, ...]
    permissions: Tensor


@dataclass(frozen=True)
class BatchPlan:
    """``size`` crops of ``crop_px`` pixels square, of which ``quads`` x 4 are two photos x two recipes; ``counts``: how
    often a recipe has no kind of degradation, one, two, ... (shares that sum to 1); ``severities``: the range of each
    kind whose severity is not drawn from all of 0..1. ``restricted``: the share of crops outside quads with permissions
    of their own; ``as_taken``: the share of undamaged ones that are as soft and noisy as a camera's pixels, and
    stay, and of those with a camera's noise that are as soft."""

    size: int
    crop_px: int
    quads: int
    counts: tuple[float, ...] = DEFAULT_COUNTS
    severities: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(DEFAULT_SEVERITIES))
    restricted: float = 0.0
    as_taken: float = 0.0


def draw_training_recipe(
    rng: np.random.Generator,
    weights: dict[str, float] | None = None,
    avoid: Recipe | None = None,
    counts: Sequence[float] = DEFAULT_COUNTS,
    severities: Mapping[str, tuple[float, float]] | None = None,
) -> Recipe:
    """Degradation for one training sample; with ``avoid``, none that shares a family of kinds with that recipe."""
    shares = DEFAULT_WEIGHTS if weights is None else weights
    taken = {FAMILIES[kind] for kind in avoid.kinds} if avoid is not None else set()
    kinds = [kind for kind in ALL_KINDS if shares.get(kind, 0.0) > 0 and FAMILIES[kind] not in taken]
    count = int(rng.choice(len(counts), p=counts))
    if avoid is not None and not avoid.kinds:
        count = max(count, 1)
    count = min(count, len({FAMILIES[kind] for kind in kinds}))
    recipe = draw_recipe(rng, kinds, count, [shares[kind] for kind in kinds], severities)
    families = {FAMILIES[kind] for kind in recipe.kinds}
    if "camera_noise" in recipe.kinds and "camera_jpeg" in kinds and "jpeg" not in families and rng.random() < _FILED:
        recipe = replace(recipe, steps=(*recipe.steps, draw_step("camera_jpeg", float(rng.uniform()), rng)))
    return recipe


def draw_permissions(rng: np.random.Generator, recipe: Recipe) -> NDArray[np.float32]:
    """Permissions, F in 0..1, for a picture that ``recipe`` degraded: mostly some of what is in it is left out."""
    count = len(FAMILY_NAMES)
    present = [k for k, family in enumerate(FAMILY_NAMES) if family in recipe.families]
    way = rng.random()
    if way < 0.3:  # one family alone, as a hand that asks for denoising does
        permissions = np.zeros(count, np.float32)
        there = present and rng.random() < 0.6
        permissions[rng.choice(present) if there else rng.integers(count)] = 1.0
    elif way < 0.6 and present:  # all but one that is there
        permissions = np.ones(count, np.float32)
        permissions[rng.choice(present)] = 0.0
    else:
        permissions = (rng.random(count) < 0.5).astype(np.float32)
    if present and rng.random() < 0.15:  # in part
        permissions[rng.choice(present)] = rng.uniform()
    return permissions


def unasked(rng: np.random.Generator, recipe: Recipe) -> NDArray[np.float32]:
    """What evidence permits to who asks for nothing: the families that are there, and some that are not."""
    absent = rng.random(len(FAMILY_NAMES)) < rng.uniform(*_FALSE_ALARMS)
    return np.array([family in recipe.families for family in FAMILY_NAMES] | absent, np.float32)


def permitted(recipe: Recipe, crop: NDArray[np.float32], permissions: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a hand with these permissions asks for: ``crop`` with all degradations that may not be mended. A permission
    between 0 and 1 blends what both ends ask for (of one family; of several, all at the same time)."""
    kept = frozenset(family for family, p in zip(FAMILY_NAMES, permissions, strict=True) if p == 0)
    part = float(max((p for p in permissions if 0 < p < 1), default=0.0))
    mended = recipe.apply(crop, kept)
    if part == 0.0:
        return mended
    partly = kept | {family for family, p in zip(FAMILY_NAMES, permissions, strict=True) if 0 < p < 1}
    blend: NDArray[np.float32] = np.float32(part) * mended + np.float32(1 - part) * recipe.apply(crop, partly)
    return blend


def soften(crop: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """``crop`` as soft as lenses leave a camera's full resolution: a part of it enlarged 1.2 to 1.7 times. The same
    shape, 8-bit values. Photos for training are shrunk ones, sharp to the pixel: a mosaic of those has zips along all
    edges, and a network that has to keep zips keeps the noise of demosaicked pixels, which looks like them."""
    side = round(crop.shape[0] / rng.uniform(1.2, 1.7))
    part = Image.fromarray(np.rint(crop[:side, :side] * 255).astype(np.uint8))
    return np.asarray(part.resize(crop.shape[1::-1], Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def as_taken(crop: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """``crop`` as a camera's full resolution: soft, in half of the cases with the noise of ISO 100 to 400. The same
    shape, 8-bit values."""
    soft = soften(crop, rng)
    if rng.random() < 0.5:
        return soft
    step: Step = draw_step("camera_noise", float(rng.uniform(0.0, 0.2)), rng)
    return Recipe((step,), int(rng.integers(2**63))).apply(soft)


def draw_batch(
    photos: PhotoSet,
    plan: BatchPlan,
    seed: Sequence[int],
    weights: dict[str, float] | None = None,
    undone: str | None = None,
) -> Batch:
    """The batch that belongs to ``seed`` (for example seed, step, rank): the same arguments, the same bits.

    ``undone`` names a family of kinds: ``clean`` then keeps all degradation but that of this family.
    """
    rng = np.random.default_rng(list(seed))
    drawn = _Drawn()
    everything = np.ones(len(FAMILY_NAMES), np.float32)
    if undone is not None:
        everything = np.array([family == undone for family in FAMILY_NAMES], np.float32)
    recipes = 0

    def add(crop: NDArray[np.float32], recipe: Recipe, indices: tuple[int, int], may: NDArray[np.float32]) -> None:
        oy, ox = (int(o) for o in rng.integers(_MARGIN_PX + 1, size=2))
        window = (slice(oy, oy + plan.crop_px), slice(ox, ox + plan.crop_px))
        drawn.clean.append(permitted(recipe, crop, may)[window])
        drawn.degraded.append(recipe.apply(crop)[window])
        drawn.indices.append(indices)
        drawn.names.append(recipe.name)
        drawn.permissions.append(may)

    def free(recipe: Recipe) -> NDArray[np.float32]:
        """All that is there may be mended: in a part with everything else, else as it is unasked."""
        plain = not plan.restricted or rng.random() < _EVERYTHING
        return everything if plain else unasked(rng, recipe)

    def draw(avoid: Recipe | None = None) -> Recipe:
        return draw_training_recipe(rng, weights, avoid, plan.counts, plan.severities)

    size = plan.crop_px + _MARGIN_PX
    for quad in range(plan.quads):
        pair = [photos.draw_crop(photos.draw_index(rng), size, rng) for _ in range(2)]
        first = draw()
        for recipe in (first, draw(first)):
            may = free(recipe)
            for which, crop in enumerate(pair):
                add(crop, recipe, (recipes, 2 * quad + which), may)
            recipes += 1
    while len(drawn.clean) < plan.size:
        crop, recipe = photos.draw_crop(photos.draw_index(rng), size, rng), draw()
        may = free(recipe)
        if plan.as_taken and not recipe.steps and rng.random() < plan.as_taken:
            crop = as_taken(crop, rng)
        elif plan.as_taken and "camera_noise" in recipe.kinds and rng.random() < plan.as_taken:
            crop = soften(crop, rng)
        if plan.restricted and rng.random() < plan.restricted:
            may = draw_permissions(rng, recipe)
        add(crop, recipe, (recipes, 2 * plan.quads + recipes), may)
        recipes += 1
    recipe_of, photo_of = torch.tensor(drawn.indices).unbind(1)
    permissions = torch.from_numpy(np.stack(drawn.permissions))
    return Batch(to_nchw(drawn.degraded), to_nchw(drawn.clean), recipe_of, photo_of, tuple(drawn.names), permissions)


@dataclass
class _Drawn:
    """A batch in the making."""

    clean: list[NDArray[np.float32]] = field(default_factory=list)
    degraded: list[NDArray[np.float32]] = field(default_factory=list)
    indices: list[tuple[int, int]] = field(default_factory=list)  # recipe, photo
    names: list[str] = field(default_factory=list)
    permissions: list[NDArray[np.float32]] = field(default_factory=list)


def to_nchw(pictures: Sequence[NDArray[np.float32]]) -> Tensor:
    """N pictures HxWx3 as one tensor Nx3xHxW."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)))


class Prefetcher:
    """Draws the batches of coming steps a few ahead: in one thread, or in ``workers`` processes.

    For a CPU one thread is enough: numpy releases the interpreter lock in its loops, a batch costs a few per cent of a
    step, and the photos are held once. A GPU uses batches up faster than one core draws them; each process then reads
    the photos of the set's folder itself. Either way gives the same batches. A context manager; an error in a worker is
    raised by :meth:`get`.
    """

    def __init__(
        self, photos: PhotoSet, seed: int, rank: int = 0, weights: dict[str, float] | None = None, workers: int = 0
    ) -> None:
        self._photos = None if workers else photos  # worker processes have their own
        self._seed, self._rank, self._weights = seed, rank, weights
        self._drawn: dict[int, Future[_Packed]] = {}
        self._pool: Executor
        if workers:
            # Not forked: a process that holds a GPU and threads must not be.
            self._pool = ProcessPoolExecutor(
                workers, get_context("spawn"), _read_photos, (photos.folder, photos.split, photos.drawn)
            )
        else:
            self._pool = ThreadPoolExecutor(1, "clusir-data")

    def ask(self, step: int, plan: BatchPlan) -> None:
        """Have the batch of ``step`` prepared."""
        if step not in self._drawn:
            seed = (self._seed, step, self._rank)
            self._drawn[step] = self._pool.submit(_draw_packed, self._photos, plan, seed, self._weights)

    def get(self, step: int) -> Batch:
        """The batch of ``step``, which must have been asked for."""
        return _unpack(self._drawn.pop(step).result())

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_Packed = tuple[NDArray[np.uint8], NDArray[np.uint8], Batch]
_held: list[PhotoSet] = []  # a worker process's photos


def _read_photos(folder: Path, split: str, drawn: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the training one says what happens
    torch.set_num_threads(1)
    _held.append(PhotoSet(folder, split, drawn=drawn))


def _draw_packed(
    photos: PhotoSet | None, plan: BatchPlan, seed: Sequence[int], weights: dict[str, float] | None
) -> _Packed:
    """A batch with its pictures as uint8, which is all they hold (to half a level, where a permission is in part), to
    pass between processes: a quarter of the bytes. ``photos`` None: those that this worker process has read."""
    batch = draw_batch(_held[0] if photos is None else photos, plan, seed, weights)
    degraded, clean = ((x * 255).round().to(torch.uint8).numpy() for x in (batch.degraded, batch.clean))
    nothing = torch.empty(0)
    return degraded, clean, replace(batch, degraded=nothing, clean=nothing)


def _unpack(packed: _Packed) -> Batch:
    degraded, clean = (torch.from_numpy(x.astype(np.float32) / np.float32(255.0)) for x in packed[:2])
    return replace(packed[2], degraded=degraded, clean=clean)
