"""Fit the gain and shift of a whole picture's colours: after evidence, for the rest of the weights as they are.

With a gain a and a shift s, the squared error of a colour against what it should be, x, needs no pixel of what the
network made of it, y: a^2 <y y> + 2 a s <y> + s^2 - 2 a <x y> - 2 s <x> + <x x>. Each picture is restored once for
these means, and the head is then fitted in seconds (:mod:`clusir.network.exposure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clusir.degrade.kinds import REGISTRY
from clusir.degrade.recipe import FAMILY_NAMES
from clusir.network.cues import TONAL as TONAL_FAMILIES
from clusir.network.exposure import CORRECTIONS, SEEN, ExposureHead, moved
from clusir.network.model import ClusIR
from clusir.network.pooled import PooledStatistics
from clusir.training.data import TONAL
from clusir.training.judge.fitting import Fit, fit_head
from clusir.training.judge.pictures import draw_pictures, evidence_statistics
from clusir.training.photos import PhotoSet

__all__ = ["ExposureReport", "calibrate_exposure", "correction_error", "fit_exposure", "moments"]

# Beside haze and darkness, in their pictures and in others that only might have them.
_OTHERS = 0.3
_CROP_PX = 320
_FLOOR = 1e-4  # 40 dB
_STEPS = 4000


@dataclass(frozen=True)
class ExposureReport:
    """Of held-out pictures in which haze or darkness is mended: how many, and their mean PSNR in dB without the
    correction, with it, and with the best there is for each."""

    pictures: int
    plain: float
    corrected: float
    best: float


def moments(restored: Tensor, wanted: Tensor) -> Tensor:
    """<y y>, <y>, <x y>, <x>, <x x> of each colour, 5x3, of what was restored, y, and is wanted, x: Nx3xHxW each."""
    y, x = restored.double(), wanted.double()
    return torch.stack([part.mean(dim=(0, 2, 3)) for part in (y * y, y, x * y, x, x * x)]).float()


def correction_error(found: Tensor, correction: Tensor) -> Tensor:
    """The mean squared error, N, of pictures of the moments Nx5x3 after a correction NxCORRECTIONS."""
    yy, y, xy, x, xx = found.unbind(1)
    gain, shift = correction.chunk(2, dim=1)
    a = 1 + gain
    error = a * a * yy + 2 * a * shift * y + shift * shift - 2 * a * xy - 2 * shift * x + xx
    return error.mean(dim=1).clamp_min(0)


def calibrate_exposure(
    model: ClusIR,
    taught: Sequence[tuple[PhotoSet, int]],
    held: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    *,
    crop_px: int = _CROP_PX,
    seed: int = 0,
) -> ExposureReport:
    """Fit ``model.exposure`` on one picture of each photo of ``taught`` and measure it on those of ``held``. The random
    state is left as it was. Raises ValueError for a network without permissions."""
    if model.exposure is None:
        raise ValueError("this configuration has no exposure to calibrate")
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        model.exposure.say.weight.zero_()
        model.exposure.say.bias.zero_()
    # Both before the fit: what was restored is measured without a correction.
    seen, apart = (_look(model, chosen, weights, crop_px, rng) for chosen in (taught, held))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(seen[0]) > 1:
            fit_exposure(model.exposure, *seen)
    known, found, allowed = apart
    if not len(known):
        return ExposureReport(0, *(float("nan"),) * 3)
    with torch.no_grad():
        tried = [torch.zeros(len(known), CORRECTIONS), model.exposure.judge(known) * allowed, _best(found)]
    return ExposureReport(len(known), *(_psnr(correction_error(found, correction)) for correction in tried))


@torch.no_grad()
def _look(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads, NxSEEN, the moments, Nx5x3, and how much of a correction there may be, Nx1, of the pictures
    in which haze or darkness is mended on the least evidence: those without, too, which need no correction."""
    assert model.evidence is not None
    assert model.exposure is not None
    read: list[tuple[Tensor, ...]] = []
    hook = model.exposure.register_forward_pre_hook(lambda _head, given: read.append(given))
    likely = {kind: w * (1.0 if REGISTRY[kind].family in TONAL else _OTHERS) for kind, w in weights.items()}
    rows, found, allowed = [], [], []
    everything = torch.full((1, len(FAMILY_NAMES)), -2.0)
    try:
        for drawn in draw_pictures(chosen, likely, crop_px, rng, (1,)):
            known = evidence_statistics(model, drawn.degraded)[None]
            permitted = model.evidence.permit(everything, torch.sigmoid(model.evidence.judge(known)))
            if not permitted[:, TONAL_FAMILIES].any():
                continue
            restored = model(drawn.degraded, None, PooledStatistics(together=True), permitted).restored
            seen, image, base, tonal, *_ = read.pop()
            rows.append(model.exposure.statistics(seen, base, PooledStatistics(together=True))[0])
            found.append(moments(restored, drawn.mended()))
            allowed.append(tonal * moved(image, base.clamp(0, 1), PooledStatistics(together=True)))
    finally:
        hook.remove()
    if not rows:
        return torch.empty(0, SEEN), torch.empty(0, 5, 3), torch.empty(0, 1)
    return torch.stack(rows), torch.stack(found), torch.cat(allowed)


def fit_exposure(head: ExposureHead, known: Tensor, found: Tensor, allowed: Tensor) -> None:
    """Fit the head on N pictures: what it reads, NxSEEN, their moments, Nx5x3, and how much of a correction there may
    be, Nx1. The mean over pictures of the logarithm of the error is minimised."""

    def loss(rows: Tensor, said: Tensor) -> Tensor:
        return torch.log(correction_error(found[rows], said * allowed[rows]) + _FLOOR).mean()

    fit_head(head, known, loss, Fit(_STEPS, jitter=0.1, dropped=0.2))


def _best(found: Tensor) -> Tensor:
    """The correction of least error for each of the moments Nx5x3."""
    yy, y, xy, x, _ = found.unbind(1)
    a = (xy - y * x) / (yy - y * y).clamp_min(1e-6)
    return torch.cat((a - 1, x - a * y), dim=1)


def _psnr(error: Tensor) -> float:
    return float((-10 * torch.log10(error + 1e-10)).mean())
