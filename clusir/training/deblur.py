"""Teach the deblurring blend before the network learns anything: a minute instead of hours.

What the bank's filters add to a picture is known once, and the error of a blend is a quadratic form of its weights:
|aim - degraded - sum_k c_k y_k|^2 = e - 2 b.c + c.A c. So a training set is reduced to its statistics and these forms,
and the small network from the one to the other is fitted by thousands of cheap steps. Learnt together with everything
else the blend found Gaussian blur within 500 steps and the direction of motion hardly (+0.4 dB at 9 px after 1200 steps
of 16 crops; +1.4 this way, from 4800 crops).

The aim is not the clean photo but the same degradation without its blur: a linear filter that aims at the photo smooths
noise and JPEG a little too, and the network behind it, which mends those better, would see pictures it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.deblur import REACH_PX, SteeredDeblur
from clusir.network.model import ClusIR
from clusir.training.data import Batch

__all__ = ["DEBLUR_WEIGHTS", "blend_forms", "calibrate_deblur"]

_STEPS, _BATCH, _RATE, _DECAY = 2500, 384, 3e-3, 3e-2
_JITTER = 0.05  # of each statistic's own spread: a few thousand crops are soon known by heart
_ROUND = 16  # lengths of transforms are multiples of it: 94 is twice a prime number
_FLOOR = 2e-5  # as in clusir.training.losses

DEBLUR_WEIGHTS: dict[str, float] = {
    "noise": 3.0, "poisson_gaussian": 0.4, "jpeg": 4.0, "gaussian_blur": 4.0, "motion_blur": 8.0, "defocus_blur": 2.0,
    "rain": 1.5, "haze": 1.5, "low_light": 1.5,
}  # fmt: skip
"""How often each kind is drawn for the fit: half of the pictures are blurred, most of them by motion."""


@torch.no_grad()
def blend_forms(
    bank: Tensor, degraded: Tensor, aim: Tensor, spectra: dict[tuple[int, int], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(A BxKxK, b BxK, e B) of the mean squared error over Bx3xHxW of adding a blend of ``bank`` KxSxS to every colour:
    e - 2 b.c + c.A c. Raises ValueError where the pictures are smaller than the filters' reach. ``spectra``: those of
    the bank, kept from picture to picture."""
    size, kept = bank.shape[-1], {} if spectra is None else spectra
    if min(degraded.shape[-2:]) <= REACH_PX:
        raise ValueError(f"pictures of {tuple(degraded.shape[-2:])} px are smaller than the filters' reach, {REACH_PX}")
    grey = F.pad(degraded.mean(dim=1, keepdim=True), (REACH_PX,) * 4, mode="reflect")
    # What a transform wraps around falls on what is cut off below: it needs no more room than the picture.
    height, width = (-(-side // _ROUND) * _ROUND for side in grey.shape[-2:])
    if (height, width) not in kept:
        kept[height, width] = torch.fft.rfft2(bank, s=(height, width))
    added = torch.fft.irfft2(torch.fft.rfft2(grey, s=(height, width)) * kept[height, width], s=(height, width))
    added = added[..., size - 1 : size - 1 + degraded.shape[-2], size - 1 : size - 1 + degraded.shape[-1]].flatten(2)
    missing = (aim - degraded).mean(dim=1).flatten(1)  # the same is added to every colour: only their mean counts
    pixels = added.shape[-1]
    forms = added @ added.transpose(1, 2) / pixels
    return forms, (added @ missing[..., None])[..., 0] / pixels, (aim - degraded).square().flatten(1).mean(1)


def calibrate_deblur(model: ClusIR, batches: Iterable[Batch], seed: int = 0) -> float:
    """Fit ``model.deblur``'s blend on some 5000 crops, and return the mean gain on the last tenth of them, which is
    held out, in dB.

    ``clean`` of the batches is what the blend shall aim at: draw them with ``undone="blur"``. The random state is left
    as it was. Raises ValueError where the model has no deblurring.
    """
    deblur, cue, traces = model.deblur, model.cue, model.traces
    if deblur is None or cue is None or traces is None:
        raise ValueError("this configuration has no deblurring to calibrate")
    device = next(model.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    spectra: dict[tuple[int, int], Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            degraded, aim = batch.degraded.to(device), batch.clean.to(device)
            seen = cue.statistics(degraded, traces(degraded))
            # Picture by picture: what stays of one is small, and between freed blocks of a whole batch's maps it kept
            # the heap from being used again (9 MB a batch).
            pairs = zip(degraded.split(1), aim.split(1), strict=True)
            found = [blend_forms(deblur.bank, one, its_aim, spectra) for one, its_aim in pairs]
            parts.append((seen, *(torch.cat(column) for column in zip(*found, strict=True))))
    statistics, forms, along, error = (torch.cat(column) for column in zip(*parts, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _fit(deblur, statistics, forms, along, error)


def _fit(deblur: SteeredDeblur, statistics: Tensor, forms: Tensor, along: Tensor, error: Tensor) -> float:
    held = len(error) - max(1, len(error) // 10)
    mean, spread = statistics[:held].mean(0), statistics[:held].std(0).clamp_min(1e-3)
    enter = deblur.read[0]
    assert isinstance(enter, nn.Linear)
    deblur.reset()
    with torch.no_grad():
        # Statistics in their own unit, by weights that an ordinary layer can hold.
        enter.weight.div_(spread)
        enter.bias.sub_(enter.weight @ mean)

    def gain(rows: Tensor, jitter: float) -> Tensor:
        seen = statistics[rows]
        blend = deblur.blend(seen + jitter * spread * torch.randn_like(seen))
        after = error[rows] - 2 * (along[rows] * blend).sum(1) + torch.einsum("bi,bij,bj->b", blend, forms[rows], blend)
        return 0.5 * torch.log((error[rows] + _FLOOR) / (after.clamp_min(0) + _FLOOR)).mean()

    optimizer = torch.optim.AdamW(deblur.parameters(), lr=_RATE, weight_decay=_DECAY)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        rows = torch.randint(0, held, (min(_BATCH, held),)).to(statistics.device)
        optimizer.zero_grad()
        torch.autograd.backward(-gain(rows, _JITTER))
        nn.utils.clip_grad_norm_(deblur.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return 8.686 * float(gain(torch.arange(held, len(error), device=statistics.device), 0.0))
