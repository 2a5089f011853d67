"""The photos of a training folder, read by the project's own reader and split by content."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError, UsageError
from clusir.runtimes.images.open import open_picture
from clusir.runtimes.images.thumbnails import eight_bit
from clusir.training.drawn import draw_pictures

__all__ = ["PhotoSet"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


class PhotoSet:
    """Clean photos, decoded once and kept as uint8 HxWx3 arrays.

    ``split`` is ``train``, ``validation`` or ``all``. A photo belongs to validation by the hash of its file's
    content, so that renaming, moving or adding photos never lets one change sides. ``drawn`` pictures made by code (see
    :func:`draw_pictures`) join them.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "all",
        minimum_px: int = 64,
        validation_share: float = 0.05,
        drawn: int = 0,
    ) -> None:
        if split not in ("all", "train", "validation"):
            raise UsageError(f"unknown split {split!r}; choose all, train or validation")
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; name a folder of clean photos")
        self.folder, self.split, self.drawn = folder, split, drawn
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        with ThreadPoolExecutor(2) as pool:
            read = list(pool.map(lambda p: _read(p, split, validation_share), files))
        kept = [(p, a) for p, a in zip(files, read, strict=True) if a is not None and min(a.shape[:2]) >= minimum_px]
        if not kept:
            raise UsageError(f"{folder} holds no photo of at least {minimum_px} px for the {split} split; add photos")
        self.paths = [path for path, _ in kept]
        self.photos: list[NDArray[np.uint8]] = [array for _, array in kept] + draw_pictures(drawn)
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
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error}); remove it from the training folder") from error
    validation = int(hashlib.sha256(content).hexdigest()[:8], 16) < share * 2**32
    if split != "all" and validation != (split == "validation"):
        return None
    picture = open_picture(path)
    return eight_bit(picture.rows(0, picture.height))
