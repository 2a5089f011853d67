"""Fit the Wiener filter that has the network's answer as its pilot: last of all, for the weights as they are.

Its numbers are fitted on what the network made of pictures in which noise or JPEG is mended
(:mod:`clusir.network.pilot`), alone or beside other damage, through the filter itself. The mean over pictures of the
logarithm of the error is minimised, where it is more than before five times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from clusir.degrade.recipe import FAMILY_NAMES
from clusir.network.cues import FAULTS
from clusir.network.model import ClusIR
from clusir.network.pilot import STEP_PX, PilotFilter
from clusir.network.pooled import PooledStatistics
from clusir.training.judge.pictures import draw_pictures, evidence_statistics
from clusir.training.photos import PhotoSet

__all__ = ["PilotPicture", "PilotReport", "calibrate_pilot", "filter_gains", "fit_pilot"]

_MOST = 3000  # pictures to learn from: there are 45,000 numbers, and each picture has 4,000 blocks
_WINDOW_PX = 128
_STEPS, _BATCH, _RATE = 6000, 6, 0.08
_BLOCK_RATE = 4e-3  # of the network over blocks
_FLOOR = 1e-5  # 50 dB
# How much more a neper lost counts than one gained, and once more. With 2, sharp photos with faint noise of a camera
# lost up to 4 dB.
_HARM = 4.0
_WORSE_DB = 0.1
_EVERYTHING = 0.5  # of the pictures may have anything mended of which there is a trace
_EDGE_PX = 12  # of a window, whose neighbours the filter does not see
_MOST_LOG, _MOST_POWER = 3.0, 0.5  # of numbers that products of both, with a picture's noise, are finite in float16


@dataclass(frozen=True)
class PilotPicture:
    """As it came, what the network took away, what it left, and how it should be, 3xHxW each (uint8 and float16, to
    keep many), and the numbers that the filter is given of it."""

    image: Tensor
    away: Tensor
    restored: Tensor
    wanted: Tensor
    taken: Tensor


@dataclass(frozen=True)
class PilotReport:
    """Of held-out pictures on which the filter acts: how many, the mean gain in dB by the network alone and with the
    filter, and the part that the filter makes worse by over 0.1 dB."""

    pictures: int
    gain_before: float
    gain_after: float
    worse: float


def calibrate_pilot(
    model: ClusIR,
    taught: Sequence[tuple[PhotoSet, int]],
    held: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    *,
    crop_px: int = 256,
    seed: int = 0,
) -> PilotReport:
    """Fit ``model.pilot`` on one picture of each photo of ``taught`` and measure it on those of ``held``. The random
    state is left as it was. Raises ValueError for a network without permissions."""
    if model.pilot is None:
        raise ValueError("this configuration has no pilot filter to calibrate")
    rng = np.random.default_rng(seed)
    model.pilot.load_state_dict(PilotFilter().state_dict())
    pictures = _look(model, taught, weights, crop_px, rng)
    apart = _look(model, held, weights, crop_px, rng)
    if pictures:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit_pilot(model.pilot, pictures, steps=_STEPS)
    if not apart:
        return PilotReport(0, *(float("nan"),) * 3)
    before, after = filter_gains(model.pilot, apart)
    worse = float((after - before < -_WORSE_DB).float().mean())
    return PilotReport(len(apart), float(before.mean()), float(after.mean()), worse)


@torch.no_grad()
def _look(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
) -> list[PilotPicture]:
    """What becomes of the pictures on which the filter acts: unasked, or where anything may be mended."""
    assert model.evidence is not None
    assert model.pilot is not None
    read: list[tuple[Tensor, ...]] = []
    hook = model.pilot.register_forward_pre_hook(lambda _filter, given: read.append(given))
    found: list[PilotPicture] = []
    try:
        for drawn in draw_pictures(chosen, weights, crop_px, rng, (1,)):
            asked = torch.full((1, len(FAMILY_NAMES)), -2.0 if rng.random() < _EVERYTHING else -1.0)
            evidence = torch.sigmoid(model.evidence.judge(evidence_statistics(model, drawn.degraded)[None]))
            permitted = model.evidence.permit(asked, evidence)[0]
            if not permitted[FAULTS].any():
                continue
            model(drawn.degraded, None, PooledStatistics(together=True), asked)
            away, restored, taken = read.pop()
            levels = torch.round(drawn.degraded[0].clamp(0, 1) * 255).byte()
            # Noise that passes for none is to go all the same, but what else evidence withholds is to stay.
            kept = frozenset(FAMILY_NAMES[k] for k in range(FAULTS.stop, len(FAMILY_NAMES)) if not permitted[k])
            wanted = drawn.mended(kept)[0].half()
            found.append(PilotPicture(levels, away[0].half(), restored[0].half(), wanted, taken[0]))
            if len(found) == _MOST:
                break
    finally:
        hook.remove()
    return found


def fit_pilot(
    pilot: PilotFilter, pictures: Sequence[PilotPicture], *, steps: int = _STEPS, window_px: int = _WINDOW_PX
) -> None:
    """Fit the filter by windows of that side, or of the smallest picture's."""
    start = {"shrink": -3.0, "give": -2.0, "doubt": 1.0, "shrink_power": 0.0, "doubt_power": 0.0, "own": 0.0}
    free = {name: torch.full_like(pilot.shrink, value).requires_grad_() for name, value in start.items()}
    over_blocks = [parameter for name, parameter in pilot.named_parameters() if name not in start]
    groups: list[dict[str, Any]] = [{"params": list(free.values())}, {"params": over_blocks}]
    optimizer = torch.optim.Adam(groups)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (_RATE, _BLOCK_RATE), strict=True):
            group["lr"] = rate * (1 - step / steps)
        rows = [pictures[int(k)] for k in torch.randint(0, len(pictures), (_BATCH,))]
        away, restored, wanted, taken = _batch(rows, window_px)
        change: Tensor = functional_call(pilot, _bounded(free), (away, restored, taken))
        after, before = (_error(x, wanted) for x in (restored + change, restored))
        lost = torch.log(after + _FLOOR) - torch.log(before + _FLOOR)
        optimizer.zero_grad()
        torch.autograd.backward((lost + _HARM * F.relu(lost)).mean())
        optimizer.step()
    with torch.no_grad():
        for name, value in _bounded(free).items():
            pilot.get_parameter(name).copy_(value)


def _bounded(free: dict[str, Tensor]) -> dict[str, Tensor]:
    """The filter's numbers, each within its range, from numbers of any size. A block's mean is not shrunk."""
    bounded = {name: torch.sigmoid(free[name]) for name in ("give", "own")}
    bounded |= {name: torch.exp(_MOST_LOG * torch.tanh(free[name] / _MOST_LOG)) for name in ("shrink", "doubt")}
    bounded |= {f"{name}_power": _MOST_POWER * torch.tanh(free[f"{name}_power"]) for name in ("shrink", "doubt")}
    means = torch.zeros_like(free["shrink"])
    means[:, 0] = 1
    bounded["shrink"] = bounded["shrink"] * (1 - means)
    return bounded


def _batch(rows: Sequence[PilotPicture], window_px: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = []
    window_px = min(window_px, *(side for row in rows for side in row.away.shape[1:]))
    for row in rows:
        height, width = row.away.shape[1:]
        down, right = (
            STEP_PX * int(torch.randint(0, (side - window_px) // STEP_PX + 1, ())) for side in (height, width)
        )
        cut = (slice(None), slice(down, down + window_px), slice(right, right + window_px))
        parts.append((row.away[cut].float(), row.restored[cut].float(), row.wanted[cut].float(), row.taken))
    away, restored, wanted, taken = (torch.stack(part) for part in zip(*parts, strict=True))
    return away, restored, wanted, taken


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    inside = slice(_EDGE_PX, -_EDGE_PX)
    return (found.clamp(0, 1) - wanted)[..., inside, inside].square().mean(dim=(1, 2, 3))


@torch.no_grad()
def filter_gains(pilot: PilotFilter, pictures: Sequence[PilotPicture]) -> tuple[Tensor, Tensor]:
    """The gain of each picture in dB, N, before the filter and after it."""
    before, after = [], []
    for row in pictures:
        image, wanted = row.image[None].float() / 255, row.wanted[None].float()
        away, restored = row.away[None].float(), row.restored[None].float()
        filtered = restored + pilot(away, restored, row.taken[None])
        levels = [10 * torch.log10(_error(x, wanted) + 1e-6) for x in (image, restored, filtered)]
        before.append(levels[0] - levels[1])
        after.append(levels[0] - levels[2])
    return torch.cat(before), torch.cat(after)
