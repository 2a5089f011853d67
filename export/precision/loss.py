"""What a precision costs: PSNR against the truth per degradation, beside the float32 model, and gates that flipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clusir.calibration.base import Sample
from clusir.export.graph.session import Array
from clusir.export.validate.compare import measure

__all__ = ["Quality", "QualityLoss", "Run", "compare_quality", "measure_quality"]

Run = Callable[[int], tuple[Array, Array | None]]
"""Sample number to (restored 1x3xHxW, gate 1 x sum of experts or None)."""


@dataclass(frozen=True)
class Quality:
    """PSNR (dB, pictures clipped to 0..1; -inf where one is not finite) of every sample against its truth, its
    degradation, its active experts."""

    degradations: tuple[str, ...]
    psnr_db: tuple[float, ...]
    restored: tuple[Array, ...] = field(repr=False)
    active: tuple[tuple[int, ...], ...] = ()

    def subset(self, numbers: Sequence[int]) -> Quality:
        """The same for some of the samples, by number."""
        parts = (self.degradations, self.psnr_db, self.restored, self.active)
        return Quality(*(tuple(part[i] for i in numbers) if part else () for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class QualityLoss:
    """How much worse than the reference, in dB of PSNR; positive is worse. ``agreement_db``: PSNR of one output against
    the other, the mean over samples. ``flips``: share of samples in which any level chose another expert."""

    drop_db: dict[str, float]
    agreement_db: float
    flips: float | None = None

    @property
    def mean_db(self) -> float:
        return sum(map(_or_inf, self.drop_db.values())) / len(self.drop_db)

    @property
    def worst(self) -> str:
        """The degradation that loses most; one whose loss is no number loses more than any other."""
        return max(self.drop_db, key=lambda kind: _or_inf(self.drop_db[kind]))

    @property
    def worst_db(self) -> float:
        return _or_inf(self.drop_db[self.worst])

    def to_json(self) -> dict[str, Any]:
        return {
            "drop_db": self.drop_db, "mean_db": self.mean_db, "worst": self.worst, "worst_db": self.worst_db,
            "agreement_db": self.agreement_db, "flips": self.flips,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QualityLoss:
        return cls(dict(data["drop_db"]), float(data["agreement_db"]), data["flips"])


def _or_inf(drop_db: float) -> float:
    return math.inf if math.isnan(drop_db) else drop_db


def _picture(image: Array) -> Array:
    """HxWx3, clipped to 0..1; all NaN where a single value is not finite, which clipping would hide."""
    if not np.isfinite(image).all():
        return np.full_like(image[0].transpose(1, 2, 0), np.nan)
    clipped: Array = np.clip(image[0].transpose(1, 2, 0), 0.0, 1.0)
    return clipped


def measure_quality(run: Run, samples: Sequence[Sample]) -> Quality:
    """Run every sample (each needs ``clean``) and measure it."""
    values, pictures, active = [], [], []
    for number, sample in enumerate(samples):
        restored, gate = run(number)
        if sample.clean is None:
            raise ValueError(f"sample {sample.key} has no truth to measure against")
        pictures.append(_picture(restored))
        values.append(measure(_picture(sample.clean), pictures[-1]).psnr_db)
        if gate is not None:
            active.append(tuple(int(i) for i in np.flatnonzero(gate[0])))
    return Quality(tuple(s.degradation for s in samples), tuple(values), tuple(pictures), tuple(active))


def _drop(before: float, after: float) -> float:
    if after == math.inf:
        return 0.0
    return before - after if math.isfinite(after) else math.inf


def compare_quality(reference: Quality, other: Quality) -> QualityLoss:
    """The loss of ``other`` against ``reference``, both measured on the same samples.

    A sample that both restore perfectly loses nothing. A restored picture that is not finite loses infinitely much.
    """
    drops: dict[str, list[float]] = {}
    agreement = []
    for kind, before, after, a, b in zip(
        reference.degradations, reference.psnr_db, other.psnr_db, reference.restored, other.restored, strict=True
    ):
        drops.setdefault(kind, []).append(_drop(before, after))
        agreement.append(min(measure(a, b).psnr_db, 200.0))
    flips = None
    if reference.active and other.active:
        flips = float(np.mean([a != b for a, b in zip(reference.active, other.active, strict=True)]))
    means = {kind: float(np.mean(values)) for kind, values in drops.items()}
    return QualityLoss(means, float(np.mean(agreement)), flips)
