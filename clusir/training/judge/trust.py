"""Fit how much of the mending to keep: last of all, for the weights and the thresholds of evidence as they are.

For a share s of what was done, the squared error of a picture is a parabola, a - 2 b s + c s^2, where a is the error of
the input, c the energy of what was done, and b their product. It is measured once for each picture; the head then
learns the share from what the network did (:mod:`clusir.network.trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clusir.degrade.recipe import FAMILY_NAMES
from clusir.network.model import ClusIR
from clusir.network.pooled import PooledStatistics
from clusir.network.trust import RESIDUALS, UNLIMITED, TrustHead, outside, residual_statistics
from clusir.training.judge.fitting import Fit, fit_head
from clusir.training.judge.pictures import draw_pictures, evidence_statistics
from clusir.training.photos import PhotoSet

__all__ = ["TrustReport", "calibrate_trust", "fit_trust"]

_MORE_OFTEN = {"camera_noise": 3.0}  # faint noise is where mending costs most
_WINDOWS = (1, 2)
_FLOOR = 2e-5  # 47 dB, as of the loss in training
# A neper lost counts so much more than one gained. On 2,651 held-out pictures 0, 0.3, 0.6 and 1 leave 10, 6, 5 and 5 %
# of all worse, and keep 92, 90, 86 and 79 % of what is gained on a camera's plain noise (31 to 35 dB).
_HARM = 0.3
_STEPS = 3000
_WORSE_DB = 0.1
# What lies outside 0..1 may be so many times as much as in the worst of all pictures. Of the shipped network's, 600
# damaged and undamaged ones, the worst had 3e-4; stripes, checks and dots of one pixel have 0.02 and far more.
_SPARE, _LEAST_LIMIT = 7.0, 1e-3


@dataclass(frozen=True)
class TrustReport:
    """Of held-out pictures that evidence lets through: how many, and with all and with the share that is kept, the mean
    gain in dB, and what part came back worse by over 0.1 dB."""

    pictures: int
    gain_all: float
    gain_kept: float
    worse_all: float
    worse_kept: float


def calibrate_trust(
    model: ClusIR,
    taught: Sequence[tuple[PhotoSet, int]],
    held: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    *,
    crop_px: int = 192,
    seed: int = 0,
) -> TrustReport:
    """Fit ``model.trust`` on one picture of each photo of ``taught`` and measure it on those of ``held``. The random
    state is left as it was. Raises ValueError for a network without permissions."""
    if model.trust is None:
        raise ValueError("this configuration has no trust to calibrate")
    weights = {kind: weight * _MORE_OFTEN.get(kind, 1.0) for kind, weight in weights.items()}
    rng = np.random.default_rng(seed)
    model.trust.limit.fill_(UNLIMITED)
    known, error, beyond = _look(model, taught, weights, crop_px, rng)
    if len(known) > 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit_trust(model.trust, known, error)
    known, error, more = _look(model, held, weights, crop_px, rng)
    model.trust.limit.fill_(max(_LEAST_LIMIT, _SPARE * max([0.0, *beyond, *more])))
    with torch.no_grad():
        kept = torch.sigmoid(model.trust.judge(known))[:, 0]
    gains = [_gain_db(error, share) for share in (torch.ones_like(kept), kept)]
    means = [float(gain.mean()) for gain in gains]
    worse = [float((gain < -_WORSE_DB).float().mean()) for gain in gains]
    return TrustReport(len(known), means[0], means[1], worse[0], worse[1])


@torch.no_grad()
def _look(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, list[float]]:
    """What the head reads, NxK, the parabolas (a, b, c), Nx3, and what lies outside 0..1, N, of the pictures in which
    something is mended."""
    assert model.evidence is not None
    unasked = -torch.ones(1, len(FAMILY_NAMES))
    rows, errors, beyond = [], [], []
    for drawn in draw_pictures(chosen, weights, crop_px, rng, _WINDOWS):
        evidence = torch.sigmoid(model.evidence.judge(evidence_statistics(model, drawn.degraded)[None]))
        permitted = model.evidence.permit(unasked, evidence)
        if not permitted.any():
            continue
        # Asked outright for what evidence permits, so that all is kept.
        restored = model(drawn.degraded, None, PooledStatistics(together=True), permitted).restored
        done = (restored - drawn.degraded).double()
        wanted = (drawn.mended() - drawn.degraded).double()
        seen = residual_statistics(drawn.degraded, restored, PooledStatistics(together=True))
        rows.append(torch.cat((seen, (permitted > 0).float()), dim=1)[0])
        beyond.append(float(outside(restored, PooledStatistics(together=True))))
        errors.append(torch.stack([wanted.square().mean(), (done * wanted).mean(), done.square().mean()]).float())
    if not rows:
        return torch.empty(0, RESIDUALS + len(FAMILY_NAMES)), torch.empty(0, 3), []
    return torch.stack(rows), torch.stack(errors), beyond


def fit_trust(head: TrustHead, known: Tensor, error: Tensor) -> None:
    """Fit the head on N pictures: what it reads, NxK, and their parabolas, Nx3. The mean over pictures of the logarithm
    of the error is minimised, where it is more than the input's once more."""

    def loss(rows: Tensor, said: Tensor) -> Tensor:
        left = torch.log(_error(error[rows], torch.sigmoid(said)[:, 0]) + _FLOOR)
        return (left + _HARM * F.relu(left - torch.log(error[rows, 0] + _FLOOR))).mean()

    fit_head(head, known, loss, Fit(_STEPS, jitter=0.05, dropped=0.1, bias=1.0))


def _error(parabola: Tensor, share: Tensor) -> Tensor:
    a, b, c = parabola.unbind(1)
    return (a - 2 * b * share + c * share.square()).clamp_min(0)


def _gain_db(parabola: Tensor, share: Tensor) -> Tensor:
    """By how much the error falls; what is better than 47 dB cannot be seen, and does not count."""
    return -10 * (torch.log10(_error(parabola, share) + _FLOOR) - torch.log10(parabola[:, 0] + _FLOOR))
