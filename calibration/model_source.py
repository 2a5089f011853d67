"""Crops as a model of another scale, or of one channel, takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clusir.calibration.base import Array, CalibrationSource, Sample
from clusir.calibration.planes import colours_of, maps_for
from clusir.calibration.sources import CLEAN, PairSource, SyntheticSource
from clusir.degrade.optics import disk_kernel, filter_image
from clusir.errors import CalibrationError

__all__ = ["SHRUNK", "SMOOTH", "ModelSource", "for_model", "shrink", "soften"]

SHRUNK, SMOOTH = "shrunk", "smooth"
_DISK = 1.0  # radius in pixels of the picture that is enlarged
_GRAIN = 1 / 255  # which no enlarger foresees: it ends 45 to 48 dB from the truth, as on real photos of little detail


def shrink(image: Array, scale: int) -> Array:
    """BxCxHxW float32 to a ``scale``-th of its height and width, each pixel the mean of ``scale`` x ``scale``."""
    batch, channels, height, width = image.shape
    boxes = image.reshape(batch, channels, height // scale, scale, width // scale, scale)
    small: Array = np.ascontiguousarray(boxes.mean(axis=(3, 5), dtype=np.float64), np.float32)
    return small


def soften(image: Array, scale: int, seed: int = 0) -> Array:
    """BxCxHxW float32 in 0..1 out of focus, with the faintest grain, in levels of eight bits: sky, fog and what lies
    behind a subject, which enlarging leaves so near the truth that rounding is seen. The free photos hold little of
    them."""
    pictures = [filter_image(picture.transpose(1, 2, 0), disk_kernel(_DISK * scale)) for picture in image]
    smooth = np.stack(pictures).transpose(0, 3, 1, 2)
    grain = np.random.default_rng(seed).normal(0, _GRAIN, smooth.shape)
    return np.ascontiguousarray(np.rint(255 * (smooth + grain).clip(0, 1)) / 255, np.float32)


@dataclass(frozen=True)
class ModelSource:
    """``source``, whose crops are ``scale`` times as large as this one's, for a model that enlarges or is grey.

    With ``scale`` above 1 the truth is the clean crop and the picture that crop, shrunk, and every second time it is
    that crop out of focus; one channel is the mean of three, which is what the runners give to a grey model. Of more
    ``channels`` than a picture has the last are maps, different ones for each crop.
    """

    source: CalibrationSource
    scale: int
    channels: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def crop_px(self) -> int:
        return self.source.crop_px // self.scale

    @property
    def degradations(self) -> tuple[str, ...]:
        return self.source.degradations if self.scale == 1 else (SHRUNK, SMOOTH)

    def __len__(self) -> int:
        return len(self.source) if self.scale == 1 else 2 * len(self.source)

    def sample(self, index: int) -> Sample:
        found = self.source.sample(index if self.scale == 1 else index // 2)
        image, clean = self._grey(found.image), None if found.clean is None else self._grey(found.clean)
        if self.scale == 1:
            return replace(found, image=self._mapped(image, index), clean=clean)
        large, kind = image if clean is None else clean, self.degradations[index % 2]
        large = soften(large, self.scale, index) if kind == SMOOTH else large
        key = f"{found.key.split('#')[0]}#{kind}:{self.scale}"
        return Sample(index, key, kind, self._mapped(shrink(large, self.scale), index), large)

    def describe(self) -> dict[str, Any]:
        return {**self.source.describe(), "scale": self.scale, "channels": self.channels}

    def _grey(self, image: Array) -> Array:
        if colours_of(self.channels) != 1:
            return image
        return image.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)

    def _mapped(self, image: Array, index: int) -> Array:
        maps = maps_for(self.channels, image.shape[2], image.shape[3], index)
        return np.concatenate([image, np.repeat(maps[None], len(image), axis=0)], axis=1)


def for_model(source: CalibrationSource, scale: int, channels: int) -> CalibrationSource:
    """``source`` as a model of that scale and those channels takes it; the same source for scale 1 and three channels.

    The crops of ``source`` are as large as the model's answers. Raises CalibrationError for pairs of equal size where
    the model enlarges.
    """
    if (scale, channels) == (1, 3):
        return source
    if scale > 1 and isinstance(source, PairSource):
        raise CalibrationError(
            f"the model makes pictures {scale} times as large, and the pictures of a pair have one size; give a folder "
            "of clean photos, which are shrunk to be its inputs"
        )
    if scale > 1 and isinstance(source, SyntheticSource):
        source = replace(source, degradations=(CLEAN,))
    return ModelSource(source, scale, channels)
