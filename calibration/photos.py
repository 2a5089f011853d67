"""Photos as data: files of a folder, or the free photos inside the scikit-image wheel, each known by its hash."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from clusir.errors import CalibrationError
from clusir.names import install_line

__all__ = ["BUILT_IN", "Photo", "PhotoSet", "built_in_photos", "folder_photos"]

# Public-domain and CC0 pictures that the scikit-image wheel carries as files, so no download happens.
BUILT_IN = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg",
    "camera.png", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"))
_OPEN_ERRORS = (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError)


@lru_cache(maxsize=16)
def _decode(path: Path, sha256: str) -> NDArray[np.uint8]:
    # The hash is only the key: a file that was replaced must not come out of the cache.
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


@dataclass(frozen=True)
class Photo:
    """One photo on disk: ``name`` relative to its folder, size in pixels as shown, SHA-256 of the file."""

    name: str
    path: Path
    height: int
    width: int
    sha256: str

    def crop(self, top: int, left: int, size: int) -> NDArray[np.float32]:
        """size x size x 3 float32 RGB in 0..1. Raises CalibrationError where the file broke since it was listed."""
        try:
            pixels = _decode(self.path, self.sha256)
        except _OPEN_ERRORS as error:
            raise CalibrationError(f"calibration photo {self.path} cannot be read ({error}); remove it") from error
        return cast("NDArray[np.float32]", pixels[top : top + size, left : left + size].astype(np.float32) / 255.0)


@dataclass(frozen=True)
class PhotoSet:
    """The usable photos of a place, and for each one left out why: ``skipped`` holds "name: reason" sentences."""

    photos: tuple[Photo, ...]
    skipped: tuple[str, ...] = field(default=())


def inspect_photo(path: Path, name: str, crop_px: int) -> Photo | str:
    """The photo, or why it cannot serve (unreadable, smaller than a ``crop_px`` square)."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        height, width = _decode(path, digest).shape[:2]
    except _OPEN_ERRORS as error:
        return f"{name}: unreadable ({type(error).__name__})"
    if min(height, width) < crop_px:
        return f"{name}: {width}x{height} px is smaller than the {crop_px} px crop"
    return Photo(name, path, height, width, digest)


def collect(found: Iterable[tuple[Path, str]], crop_px: int, place: str) -> PhotoSet:
    """Inspect (path, name) pairs. Raises CalibrationError where not one photo can serve, saying what was wrong."""
    photos: list[Photo] = []
    skipped: list[str] = []
    for path, name in found:
        result = inspect_photo(path, name, crop_px)
        if isinstance(result, Photo):
            photos.append(result)
        else:
            skipped.append(result)
    if not photos:
        if not skipped:
            raise CalibrationError(
                f"calibration folder {place} holds no pictures; give one with {', '.join(sorted(SUFFIXES))} files"
            )
        raise CalibrationError(
            f"no picture of {place} can be used for calibration: {skipped[0]}"
            + (f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else "")
            + f"; give readable pictures of at least {crop_px}x{crop_px} px"
        )
    return PhotoSet(tuple(photos), tuple(skipped))


def list_pictures(folder: Path) -> list[tuple[Path, str]]:
    """(path, name relative to the folder) of every picture file below ``folder``, in the order of their names."""
    if not folder.is_dir():
        raise CalibrationError(
            f"calibration folder {folder} does not exist or is not a folder; give a folder of photos"
        )
    try:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise CalibrationError(
            f"calibration folder {folder} cannot be read ({error}); check its permissions"
        ) from error
    return [(path, path.relative_to(folder).as_posix()) for path in found]


def folder_photos(folder: Path, crop_px: int) -> PhotoSet:
    """All pictures below ``folder`` that hold a ``crop_px`` square. Raises CalibrationError where there are none."""
    return collect(list_pictures(folder), crop_px, str(folder))


@lru_cache(maxsize=8)  # files of an installed package: looked at and hashed once
def built_in_photos(crop_px: int) -> PhotoSet:
    """The free photos of the scikit-image wheel. Raises CalibrationError where scikit-image is not installed."""
    try:
        place = importlib.resources.files("skimage.data")
    except ModuleNotFoundError as error:
        raise CalibrationError(
            "no calibration folder was given and scikit-image, whose photos would serve, is not installed; "
            f"give a folder of photos or run: {install_line('skimage')}"
        ) from error
    found = [(Path(str(place / name)), name) for name in BUILT_IN]
    return collect(((path, name) for path, name in found if path.is_file()), crop_px, "scikit-image's data")
