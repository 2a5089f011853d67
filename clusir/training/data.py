"""Training data: clean photos in memory, and batches damaged on the fly.

A batch is a pure function of (seed, step, rank): nothing but the step number has to be saved to resume bit-exactly,
and any number of loader threads gives the same stream. Half of each batch is laid out in quads, two photos times two
recipes, so that losses can ask the router to tell damage from content without a class label.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clusir.degrade.recipe import FAMILIES, KINDS, Recipe, draw_recipe
from clusir.errors import ImageError, UsageError

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
]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_MARGIN_PX = 8  # crops are cut this much larger, damaged, then trimmed: JPEG's 8-px grid lands anywhere

DEFAULT_WEIGHTS: dict[str, float] = {
    "noise": 2.6, "poisson_gaussian": 0.8, "jpeg": 2.0, "gaussian_blur": 0.9, "motion_blur": 0.9, "defocus_blur": 0.5,
    "rain": 1.4, "haze": 1.7, "low_light": 1.7,
}  # fmt: skip
"""How often each kind is drawn, relative to the others: families get comparable shares, noise and JPEG the largest."""

DEFAULT_COUNTS = (0.04, 0.68, 0.20, 0.08)
"""The shares of pictures with no damage, one kind, two, three kinds at a time."""

DEFAULT_SEVERITIES: dict[str, tuple[float, float]] = {"motion_blur": (0.0, 0.6)}
"""The range of severities of the kinds that are not drawn from 0..1. Motion blur of 3 to 13 px: trained on it alone,
200 steps on all lengths to 19 px brought +0.2 dB at 9 px, 200 on 9 px +0.8 (docs/training.md)."""


@dataclass(frozen=True)
class Batch:
    """``damaged`` and ``clean``: Bx3xHxW float32 in 0..1. ``recipe`` and ``photo``: B integers, equal where samples
    share their damage or their picture; ``names``: the recipes' names, for measuring only, never for a loss."""

    damaged: Tensor
    clean: Tensor
    recipe: Tensor
    photo: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class BatchPlan:
    """``size`` crops of ``crop_px`` pixels square, of which ``quads`` x 4 are two photos x two recipes; ``counts``: how
    often a recipe has no kind of damage, one, two, ... (shares that sum to 1); ``severities``: the range of each kind
    whose severity is not drawn from all of 0..1."""

    size: int
    crop_px: int
    quads: int
    counts: tuple[float, ...] = DEFAULT_COUNTS
    severities: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(DEFAULT_SEVERITIES))


class PhotoSet:
    """Clean photos, decoded once and kept as uint8 HxWx3 arrays.

    ``split`` is ``train``, ``validation`` or ``all``. A photo belongs to validation by the hash of its file's
    content, so that renaming, moving or adding photos never lets one change sides.
    """

    def __init__(self, folder: Path, split: str = "all", minimum_px: int = 64, validation_share: float = 0.05) -> None:
        if split not in ("all", "train", "validation"):
            raise UsageError(f"unknown split {split!r}; choose all, train or validation")
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; name a folder of clean photos")
        self.folder, self.split = folder, split
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        with ThreadPoolExecutor(2) as pool:
            read = list(pool.map(lambda p: _read(p, split, validation_share), files))
        kept = [(p, a) for p, a in zip(files, read, strict=True) if a is not None and min(a.shape[:2]) >= minimum_px]
        if not kept:
            raise UsageError(f"{folder} holds no photo of at least {minimum_px} px for the {split} split; add photos")
        self.paths = [path for path, _ in kept]
        self.photos: list[NDArray[np.uint8]] = [array for _, array in kept]
        # The square root of the area: large photos hold more to learn from, but they must not drown the rest.
        weight = np.sqrt([a.shape[0] * a.shape[1] for a in self.photos])
        self._cumulative = np.cumsum(weight / weight.sum())

    def __len__(self) -> int:
        return len(self.photos)

    def draw_index(self, rng: np.random.Generator) -> int:
        return min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self) - 1)

    def draw_crop(self, index: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """A random ``size`` x ``size`` crop of photo ``index``, flipped and turned at random; float32 in 0..1.

        Photos smaller than that are mirrored at their borders.
        """
        photo = self.photos[index]
        height, width = photo.shape[:2]
        if min(height, width) < size:
            pad = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
            photo = np.pad(photo, pad, mode="symmetric")
            height, width = photo.shape[:2]
        y, x = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        crop = np.rot90(photo[y : y + size, x : x + size], int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop, np.float32) / np.float32(255.0)


def _read(path: Path, split: str, share: float) -> NDArray[np.uint8] | None:
    try:
        content = path.read_bytes()
        validation = int(hashlib.sha256(content).hexdigest()[:8], 16) < share * 2**32
        if split != "all" and validation != (split == "validation"):
            return None
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as a photo ({error}); remove it from the training folder") from error


def draw_training_recipe(
    rng: np.random.Generator,
    weights: dict[str, float] | None = None,
    avoid: Recipe | None = None,
    counts: Sequence[float] = DEFAULT_COUNTS,
    severities: Mapping[str, tuple[float, float]] | None = None,
) -> Recipe:
    """Damage for one training sample; with ``avoid``, none that shares a family of kinds with that recipe."""
    shares = DEFAULT_WEIGHTS if weights is None else weights
    taken = {FAMILIES[kind] for kind in avoid.kinds} if avoid is not None else set()
    kinds = [kind for kind in KINDS if shares.get(kind, 0.0) > 0 and FAMILIES[kind] not in taken]
    count = int(rng.choice(len(counts), p=counts))
    if avoid is not None and not avoid.kinds:
        count = max(count, 1)
    count = min(count, len({FAMILIES[kind] for kind in kinds}))
    return draw_recipe(rng, kinds, count, [shares[kind] for kind in kinds], severities)


def draw_batch(
    photos: PhotoSet,
    plan: BatchPlan,
    seed: Sequence[int],
    weights: dict[str, float] | None = None,
    undone: str | None = None,
) -> Batch:
    """The batch that belongs to ``seed`` (for example seed, step, rank): the same arguments, the same bits.

    ``undone`` names a family of kinds: ``clean`` then keeps all damage but that of this family.
    """
    rng = np.random.default_rng(list(seed))
    clean: list[NDArray[np.float32]] = []
    damaged: list[NDArray[np.float32]] = []
    recipe_of: list[int] = []
    photo_of: list[int] = []
    names: list[str] = []
    recipes = 0

    def add(crop: NDArray[np.float32], recipe: Recipe, recipe_index: int, photo_index: int) -> None:
        oy, ox = (int(o) for o in rng.integers(_MARGIN_PX + 1, size=2))
        window = (slice(oy, oy + plan.crop_px), slice(ox, ox + plan.crop_px))
        clean.append((crop if undone is None else recipe.without(undone).apply(crop))[window])
        damaged.append(recipe.apply(crop)[window])
        recipe_of.append(recipe_index)
        photo_of.append(photo_index)
        names.append(recipe.name)

    def draw(avoid: Recipe | None = None) -> Recipe:
        return draw_training_recipe(rng, weights, avoid, plan.counts, plan.severities)

    size = plan.crop_px + _MARGIN_PX
    for quad in range(plan.quads):
        pair = [photos.draw_crop(photos.draw_index(rng), size, rng) for _ in range(2)]
        first = draw()
        for recipe in (first, draw(first)):
            for which, crop in enumerate(pair):
                add(crop, recipe, recipes, 2 * quad + which)
            recipes += 1
    while len(clean) < plan.size:
        crop = photos.draw_crop(photos.draw_index(rng), size, rng)
        add(crop, draw(), recipes, 2 * plan.quads + recipes)
        recipes += 1
    return Batch(_to_nchw(damaged), _to_nchw(clean), torch.tensor(recipe_of), torch.tensor(photo_of), tuple(names))


def _to_nchw(pictures: list[NDArray[np.float32]]) -> Tensor:
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
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _read_photos, (photos.folder, photos.split))
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


_Packed = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]
_held: list[PhotoSet] = []  # a worker process's photos


def _read_photos(folder: Path, split: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the training one says what happens
    torch.set_num_threads(1)
    _held.append(PhotoSet(folder, split))


def _draw_packed(
    photos: PhotoSet | None, plan: BatchPlan, seed: Sequence[int], weights: dict[str, float] | None
) -> _Packed:
    """A batch with its pictures as uint8, which is all they hold, to pass between processes: a quarter of the bytes.
    ``photos`` None: those that this worker process has read."""
    batch = draw_batch(_held[0] if photos is None else photos, plan, seed, weights)
    damaged, clean = ((x * 255).round().to(torch.uint8).numpy() for x in (batch.damaged, batch.clean))
    return damaged, clean, batch.recipe.numpy(), batch.photo.numpy(), batch.names


def _unpack(packed: _Packed) -> Batch:
    damaged, clean = (torch.from_numpy(x.astype(np.float32) / np.float32(255.0)) for x in packed[:2])
    return Batch(damaged, clean, torch.from_numpy(packed[2]), torch.from_numpy(packed[3]), packed[4])
