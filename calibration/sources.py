"""The three places crops come from: photos degraded on purpose, the user's pairs, the user's pictures as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clusir.calibration.base import Array, CalibrationSource, Sample
from clusir.calibration.photos import (
    Photo,
    PhotoSet,
    built_in_photos,
    collect,
    folder_photos,
    list_pictures,
)
from clusir.degrade.recipe import KINDS, degrade, degrade_mixture
from clusir.errors import CalibrationError

__all__ = ["CLEAN", "MIXTURE", "FolderSource", "PairSource", "SyntheticSource", "hold_out", "open_source"]

MIXTURE = "mixture"
CLEAN = "clean"
_CLEAN_FOLDERS = ("clean", "gt", "target")
_DEGRADED_FOLDERS = ("degraded", "lq", "input")
_GOLDEN = (5**0.5 - 1) / 2


def _to_nchw(image: Array) -> Array:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)


def _describe(photos: PhotoSet) -> list[dict[str, str]]:
    return [{"name": photo.name, "sha256": photo.sha256} for photo in photos.photos]


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise CalibrationError(f"calibration sample {index} is not within 0..{length - 1}; draw from the whole source")


def _corner(photo: Photo, crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(photo.height - crop_px + 1)), int(rng.integers(photo.width - crop_px + 1))


@dataclass(frozen=True)
class SyntheticSource:
    """Clean photos with one degradation each, in turn, at severities that spread; the truth is known.

    Sample i takes kind i mod K, so any run of consecutive indices is balanced over the kinds. The severities of a kind
    follow a golden-section sequence from 1 down to 0.1: a few crops of a kind then hold the severest and a mild one,
    where a few draws at random may hold mild ones alone, and maps of the severest are clipped. Besides the project's
    kinds there are ``mixture`` (two or three at once) and ``clean`` (none: a model is also shown good photos).
    """

    photos: PhotoSet
    crop_px: int
    seed: int = 0
    length: int = 4096
    degradations: tuple[str, ...] = (*KINDS, MIXTURE, CLEAN)
    name: str = "synthetic"

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> Sample:
        _check_index(index, self.length)
        rng = np.random.default_rng((self.seed, index))
        kind = self.degradations[index % len(self.degradations)]
        photo = self.photos.photos[int(rng.integers(len(self.photos.photos)))]
        top, left = _corner(photo, self.crop_px, rng)
        severity = 1.0 - 0.9 * (index // len(self.degradations) * _GOLDEN % 1.0)
        clean = photo.crop(top, left, self.crop_px)
        if rng.random() < 0.5:
            clean = np.ascontiguousarray(clean[:, ::-1])
        if kind == CLEAN:
            image = clean
        elif kind == MIXTURE:
            image, _ = degrade_mixture(clean, rng)
        else:
            image = degrade(clean, kind, severity, rng)
        key = f"{photo.name}@{top},{left}#{kind}" + ("" if kind in (CLEAN, MIXTURE) else f":{severity:.3f}")
        return Sample(index, key, kind, _to_nchw(image), _to_nchw(clean))

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name, "crop_px": self.crop_px, "seed": self.seed, "length": self.length,
            "degradations": list(self.degradations), "photos": _describe(self.photos),
        }  # fmt: skip


@dataclass(frozen=True)
class FolderSource:
    """The user's pictures as they are, with no truth; the label is the first folder below the root, or ``folder``."""

    photos: PhotoSet
    crop_px: int
    seed: int = 0
    crops_per_photo: int = 8
    name: str = "folder"

    @property
    def degradations(self) -> tuple[str, ...]:
        return tuple(sorted({_label(photo, self.name) for photo in self.photos.photos}))

    def __len__(self) -> int:
        return self.crops_per_photo * len(self.photos.photos)

    def sample(self, index: int) -> Sample:
        _check_index(index, len(self))
        photo = self.photos.photos[index % len(self.photos.photos)]
        top, left = _corner(photo, self.crop_px, np.random.default_rng((self.seed, index)))
        image = _to_nchw(photo.crop(top, left, self.crop_px))
        return Sample(index, f"{photo.name}@{top},{left}", _label(photo, self.name), image)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name, "crop_px": self.crop_px, "seed": self.seed,
            "crops_per_photo": self.crops_per_photo, "photos": _describe(self.photos),
        }  # fmt: skip


@dataclass(frozen=True)
class PairSource:
    """The user's own pairs: equal names and sizes in two folders; labels as in :class:`FolderSource`."""

    degraded: PhotoSet
    clean: PhotoSet
    crop_px: int
    seed: int = 0
    crops_per_photo: int = 8
    name: str = "pairs"

    @property
    def degradations(self) -> tuple[str, ...]:
        return tuple(sorted({_label(photo, self.name) for photo in self.degraded.photos}))

    def __len__(self) -> int:
        return self.crops_per_photo * len(self.degraded.photos)

    def sample(self, index: int) -> Sample:
        _check_index(index, len(self))
        which = index % len(self.degraded.photos)
        photo, truth = self.degraded.photos[which], self.clean.photos[which]
        top, left = _corner(photo, self.crop_px, np.random.default_rng((self.seed, index)))
        image = _to_nchw(photo.crop(top, left, self.crop_px))
        clean = _to_nchw(truth.crop(top, left, self.crop_px))
        return Sample(index, f"{photo.name}@{top},{left}", _label(photo, self.name), image, clean)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name, "crop_px": self.crop_px, "seed": self.seed, "crops_per_photo": self.crops_per_photo,
            "photos": _describe(self.degraded), "clean": _describe(self.clean),
        }  # fmt: skip


def _label(photo: Photo, fallback: str) -> str:
    return photo.name.split("/", 1)[0] if "/" in photo.name else fallback


def _match_pairs(degraded: Path, clean: Path, crop_px: int, seed: int) -> PairSource:
    """Pairs by relative name without suffix. Raises CalibrationError where partner or size does not match."""
    truths = {Path(name).with_suffix("").as_posix(): (path, name) for path, name in list_pictures(clean)}
    inputs = collect(list_pictures(degraded), crop_px, str(degraded))
    partners: list[Photo] = []
    for photo in inputs.photos:
        stem = Path(photo.name).with_suffix("").as_posix()
        if stem not in truths:
            raise CalibrationError(f"{photo.path} has no partner {stem}.* in {clean}; give both pictures of every pair")
        partner = collect([truths[stem]], crop_px, str(clean)).photos[0]
        if (partner.height, partner.width) != (photo.height, photo.width):
            raise CalibrationError(
                f"{photo.path} is {photo.width}x{photo.height} px and its partner {partner.path} is "
                f"{partner.width}x{partner.height} px; the pictures of a pair must have one size"
            )
        partners.append(partner)
    return PairSource(inputs, PhotoSet(tuple(partners)), crop_px, seed)


def hold_out(source: CalibrationSource) -> tuple[CalibrationSource, CalibrationSource | None]:
    """A source without every fourth of its photos (at least one), and a source of those.

    No crop of one shares a pixel with a crop of the other: photos of one content stay together. The second is None
    where the source has no truth, or one photo only, or is none of this module's.
    """
    if isinstance(source, SyntheticSource):
        truths = source.photos
    elif isinstance(source, PairSource):
        truths = source.clean
    else:
        return source, None
    contents = list(dict.fromkeys(photo.sha256 for photo in truths.photos))
    held = set(contents[1::4])
    if not held:
        return source, None

    def part(photos: PhotoSet, out: bool) -> PhotoSet:
        chosen = (p for p, t in zip(photos.photos, truths.photos, strict=True) if (t.sha256 in held) is out)
        return PhotoSet(tuple(chosen), photos.skipped)

    if isinstance(source, SyntheticSource):
        return replace(source, photos=part(source.photos, False)), replace(source, photos=part(source.photos, True))
    kept, other = (
        replace(source, degraded=part(source.degraded, out), clean=part(source.clean, out)) for out in (False, True)
    )
    return kept, other


def open_source(folder: Path | None, crop_px: int, seed: int = 0, *, mode: str = "auto") -> CalibrationSource:
    """The source that a folder, or none, stands for.

    ``mode``: ``synthetic`` degrades the folder's photos (the built-in ones without a folder); ``pairs`` reads
    ``degraded/`` (or ``lq/``, ``input/``) and ``clean/`` (or ``gt/``, ``target/``) below it; ``as-is`` takes pictures
    untouched; ``auto`` is ``pairs`` where both of those folders are there, else ``synthetic``. ``crop_px``: side of the
    square crops, in pixels. Raises CalibrationError (exit code 2) where nothing usable is found.
    """
    if mode not in ("auto", "synthetic", "pairs", "as-is"):
        raise CalibrationError(f"calibration mode {mode!r} is not one of auto, synthetic, pairs, as-is")
    if folder is None:
        if mode in ("pairs", "as-is"):
            raise CalibrationError(f"calibration mode {mode} needs a folder; give one with --calibration")
        return SyntheticSource(built_in_photos(crop_px), crop_px, seed)
    degraded = next((folder / name for name in _DEGRADED_FOLDERS if (folder / name).is_dir()), None)
    clean = next((folder / name for name in _CLEAN_FOLDERS if (folder / name).is_dir()), None)
    if degraded is not None and clean is not None and mode in ("auto", "pairs"):
        return _match_pairs(degraded, clean, crop_px, seed)
    if mode == "auto" and degraded is not None:
        raise CalibrationError(
            f"{degraded} is there, but not its partner {folder}/clean (or {', '.join(_CLEAN_FOLDERS[1:])}); "
            "degraded pictures cannot stand for clean ones: make it, or give a folder of clean photos alone"
        )
    if mode == "pairs":
        raise CalibrationError(
            f"{folder} does not hold the folders of a set of pairs; make {folder}/degraded and {folder}/clean"
        )
    photos = folder_photos(folder, crop_px)
    if mode == "as-is":
        return FolderSource(photos, crop_px, seed)
    return SyntheticSource(photos, crop_px, seed)
