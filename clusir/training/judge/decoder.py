"""Fit the decoder once more, behind all heads, for what the whole network answers.

What a picture shows, and which experts mend it, is read in front of the decoder: evidence, clusters and routing stay as
they are to the last bit, and so do their thresholds. What is fitted is the decoder with the gains that clusters choose
in it, its refinement and its last convolution, and the Wiener filter behind them, together and by the answer behind the
filter. The mean over pictures of the logarithm of the error is minimised, where it is more than it was before the fit
four times over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clusir.degrade.recipe import FAMILY_NAMES
from clusir.network.model import ClusIR
from clusir.training.judge.pictures import draw_pictures, permitted_of
from clusir.training.judge.pilot import OVER_FILTER, bounded, unbounded
from clusir.training.photos import PhotoSet

__all__ = ["DecoderReport", "Drawn", "calibrate_decoder", "fit_decoder"]

_WINDOW_PX, _BATCH = 160, 4
_RATE, _FILTER_RATE, _BLOCK_RATE = 8e-4, 0.015, 1.5e-3  # of the decoder, the filter, and its network over blocks
_WARMUP, _CLIP = 100, 1.0
_FLOOR = 1e-5  # 50 dB
_HARM = 3.0
_WORSE_DB = 0.1
_EVERYTHING = 0.5  # of the pictures may have anything mended of which there is a trace


class Drawn(NamedTuple):
    """Pictures as they came, Bx3xHxW in 0..1, what may be mended, BxF (see :meth:`ClusIR.forward`), and how they should
    be, Bx3xHxW in 0..1."""

    degraded: Tensor
    asked: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class DecoderReport:
    """Of held-out pictures in which something is mended: how many, the mean gain in dB before the fit and after it, and
    the part that the fit makes worse by over 0.1 dB."""

    pictures: int
    gain_before: float
    gain_after: float
    worse: float


def calibrate_decoder(
    model: ClusIR,
    taught: Sequence[tuple[PhotoSet, int]],
    held: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    *,
    steps: int,
    seed: int = 0,
) -> DecoderReport:
    """Fit the decoder of ``model`` on photos of ``taught``, again and again, and measure it on one picture of each of
    ``held``. The random state is left as it was. Raises ValueError for a network without permissions."""
    if model.pilot is None:
        raise ValueError("this configuration has no filter behind its decoder to fit it with")
    rng = np.random.default_rng(seed)
    before = deepcopy(model)
    if steps and taught:
        fit_decoder(model, _batches(before, taught, weights, rng), steps=steps)
    rows = [_gains(Drawn(*row), before, model) for row in _pictures(before, held, weights, rng)]
    if not rows:
        return DecoderReport(0, *(float("nan"),) * 3)
    then, now = torch.tensor(rows).unbind(dim=1)
    return DecoderReport(
        len(rows), float(then.mean()), float(now.mean()), float((now - then < -_WORSE_DB).float().mean())
    )


def _pictures(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    rng: np.random.Generator,
) -> Iterator[Drawn]:
    """One picture of each chosen photo in which evidence lets something be mended."""
    for drawn in draw_pictures(chosen, weights, _WINDOW_PX, rng, (1,)):
        asked = torch.full((1, len(FAMILY_NAMES)), -2.0 if rng.random() < _EVERYTHING else -1.0)
        permitted = permitted_of(model, drawn, asked)
        if permitted.any():
            kept = frozenset(name for name, may in zip(FAMILY_NAMES, permitted.tolist(), strict=True) if not may)
            yield Drawn(torch.round(drawn.degraded.clamp(0, 1) * 255) / 255, asked, drawn.mended(kept))


def _batches(
    model: ClusIR, chosen: Sequence[tuple[PhotoSet, int]], weights: dict[str, float], rng: np.random.Generator
) -> Iterator[Drawn]:
    rows: list[Drawn] = []
    while True:
        for row in _pictures(model, [chosen[k] for k in rng.permutation(len(chosen))], weights, rng):
            rows.append(row)
            if len(rows) == _BATCH:
                yield Drawn(*(torch.cat(part) for part in zip(*rows, strict=True)))
                rows = []


def fit_decoder(model: ClusIR, batches: Iterator[Drawn], *, steps: int) -> None:
    """Fit on a batch each step. The deepest features are brought up as they are."""
    model.eval()
    before = deepcopy(model)
    pilot = model.pilot
    assert pilot is not None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parts: list[nn.Module] = [model.decoder, *model.up[:-1], model.refine, model.head]
    body = [p for part in [*parts, *([] if model.gains is None else [model.gains])] for p in part.parameters()]
    over_blocks = [p for name, p in pilot.named_parameters() if name not in OVER_FILTER]
    free = unbounded(pilot)
    groups = (body, list(free.values()), over_blocks)
    for parameter in body + over_blocks:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": group} for group in groups], betas=(0.9, 0.99))
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (_RATE, _FILTER_RATE, _BLOCK_RATE), strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / _WARMUP) * (1 - step / steps)
        drawn = next(batches)
        given = (drawn.degraded, None, None, drawn.asked)
        with torch.no_grad():
            least = torch.log(_error(before(*given).restored, drawn.wanted) + _FLOOR)
        fitted = {f"pilot.{name}": value for name, value in bounded(free).items()}
        answer: Tensor = functional_call(model, fitted, given).restored
        lost = torch.log(_error(answer, drawn.wanted) + _FLOOR) - least
        optimizer.zero_grad()
        torch.autograd.backward((lost + _HARM * F.relu(lost)).mean())
        nn.utils.clip_grad_norm_(body, _CLIP)
        optimizer.step()
    with torch.no_grad():
        for name, value in bounded(free).items():
            pilot.get_parameter(name).copy_(value)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found.clamp(0, 1) - wanted).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def _gains(drawn: Drawn, *models: ClusIR) -> list[float]:
    """The gain of one picture in dB by each of the models."""
    answers = [drawn.degraded, *(model(drawn.degraded, None, None, drawn.asked).restored for model in models)]
    levels = [float(10 * torch.log10(_error(answer, drawn.wanted) + 1e-6)) for answer in answers]
    return [levels[0] - level for level in levels[1:]]
