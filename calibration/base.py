"""What calibration hands out: labelled crops, from a source that gives the same crop for the same index, for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "CalibrationSource", "Sample", "batches"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One crop. ``image`` and, where the truth is known, ``clean``: float32 1x3xHxW RGB in 0..1.

    ``key`` says in words where the crop came from; ``degradation`` is its label in the coverage table.
    """

    index: int
    key: str
    degradation: str
    image: Array
    clean: Array | None = None

    @property
    def sha256(self) -> str:
        """Hash of the pixels that a model sees, in hexadecimal."""
        return hashlib.sha256(np.ascontiguousarray(self.image).tobytes()).hexdigest()


@runtime_checkable
class CalibrationSource(Protocol):
    """A sized, seeded supply of crops, addressed by index. It knows no quantiser and no model.

    ``sample(i)`` depends on the source's settings and ``i`` alone, so a list of indices is enough to draw a set again.
    ``describe()`` is everything that decides the pixels, as JSON data: photos with their hashes, seed, crop size.
    """

    @property
    def name(self) -> str: ...

    @property
    def crop_px(self) -> int: ...

    @property
    def degradations(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def describe(self) -> dict[str, Any]: ...


def batches(source: CalibrationSource, indices: Sequence[int], size: int) -> Iterator[tuple[list[Sample], Array]]:
    """The samples of ``indices`` in groups of at most ``size``, each with its images stacked to Bx3xHxW float32."""
    for start in range(0, len(indices), size):
        group = [source.sample(index) for index in indices[start : start + size]]
        yield group, np.concatenate([sample.image for sample in group])
