"""Two golden cases in a target's folder: pictures, and what the network as it came makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from clusir.errors import ModelFormatError
from clusir.export.formats.hosts.base import Array, Host
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr

__all__ = ["GoldenCase", "read_golden", "write_golden"]

_SIDE_PX = (70, 83)  # of cases for graphs of any size: neither is a multiple of anything common
_NOISE = 25 / 255
_GAIN_DB = 0.5  # what counts as a reduction of noise


@dataclass(frozen=True)
class GoldenCase:
    """``image`` and ``expected``: 1xCxHxW float32. ``clean``: the picture without its noise; empty where ``image`` has
    none. ``reduces``: whether the network brings the picture nearer to the clean one."""

    name: str
    image: Array
    expected: Array
    clean: Array
    reduces: bool


def write_golden(folder: Path, run: Callable[[Array], Array], channels: int, side_px: int, host: Host) -> None:
    """``golden/noise.npz``, a photo with noise, and ``golden/light.npz``, one whose values go from -0.1 to 1.7
    where the host gives such values, else a plain one; both in steps of 1/255 where the host has 8 bits."""
    height, width = (side_px, side_px) if side_px else _SIDE_PX
    clean = natural_picture(height, width, channels)
    noise = np.random.default_rng(3).normal(0, _NOISE, clean.shape).astype(np.float32)
    cases = {"noise": (clean + noise).clip(0, 1), "light": clean * 1.8 - 0.1 if host.beyond else clean}
    (folder / "golden").mkdir()
    for name, picture in cases.items():
        image = np.rint(picture * 255) / 255 if host.levels else picture
        image = np.ascontiguousarray(image, np.float32)
        expected = run(image)
        is_noise = name == "noise" and expected.shape == clean.shape
        reduces = is_noise and psnr(expected.clip(0, 1), clean) > psnr(image, clean) + _GAIN_DB
        np.savez_compressed(
            folder / "golden" / f"{name}.npz",
            image=image,
            expected=expected,
            clean=clean if is_noise else np.zeros(0, np.float32),
            reduces=reduces,
        )


def read_golden(folder: Path) -> list[GoldenCase]:
    """The cases of a folder. Raises ModelFormatError where there are fewer than two, or one cannot be read."""
    found = []
    for path in sorted((folder / "golden").glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                image, expected, clean = (stored[key] for key in ("image", "expected", "clean"))
                reduces = bool(stored["reduces"])
            if (
                image.dtype != np.float32
                or image.ndim != 4
                or image.shape[:2] not in ((1, 1), (1, 3))
                or expected.ndim != 4
            ):
                raise ValueError(f"its image is {image.dtype} {image.shape}, not float32 1x1xHxW or 1x3xHxW")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ModelFormatError(f"golden case {path} cannot be read ({error}); export the target again") from error
        found.append(GoldenCase(path.stem, image, expected, clean, reduces))
    if len(found) < 2:
        raise ModelFormatError(f"{folder}: fewer than two golden cases; export the target again")
    return found
