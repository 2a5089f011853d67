"""Teach the evidence head what degradations look like, and from when on it is sure: minutes, after everything else.

The head reads fixed statistics of the picture and nothing of the network, so it is fitted alone, by labels: the
families that a recipe brought into a crop. A third of the training photos and the validation photos are held out.
On one half of them the log odds of each family are scaled (Platt, 1999); on the other the calibration error is
measured, and the thresholds are set on undamaged crops of both: where no family reaches its own, a picture comes back
as it went in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clusir.degrade.recipe import FAMILY_NAMES, Recipe
from clusir.network import checkpoint
from clusir.network.model import ClusIR
from clusir.training.data import TONAL
from clusir.training.judge.exposure import calibrate_exposure
from clusir.training.judge.pictures import draw_pictures, evidence_statistics
from clusir.training.judge.pilot import calibrate_pilot
from clusir.training.judge.trust import calibrate_trust
from clusir.training.photos import PhotoSet

__all__ = ["EvidenceReport", "calibrate_evidence", "judge_weights", "reliability"]

# Of undamaged crops, the share whose evidence may reach the threshold, and the least threshold. What people may want in
# a picture needs evidence that hardly any held-out crop without it has: with one of a thousand, a dim room was
# brightened by 30 levels and a far hill lost its haze. Faults need some: on 18 held-out free photos of 512 px, evidence
# of noise of 0.15 was reached by 11 % of the undamaged, by 78 % with a camera's noise at ISO 6400 and by all with four
# times that.
_FALSE_ALARMS = {"noise": 0.15, "jpeg": 0.03, "blur": 0.03, "rain": 0.03, "haze": 0.0002, "low_light": 0.0002}
_LEAST_THRESHOLD = {family: 0.9 if family in TONAL else 0.1 for family in FAMILY_NAMES}
# The floor of haze and darkness: what all but this share of the degraded crops reach, within these bounds. On 14 free
# photos kept from the training, low light under `--fix all` was mended to 22.2 dB without floors, 23.7 with 0.02, 24.6
# with 0.05; haze to 16.9, 17.4 and 17.6. The floor of a fault is its threshold, from which `auto` mends it: mended on
# less, faults that are not there cost those that are. With such floors `--fix all` brings 28 other photos of noise 15
# and 25 to 31.42 and 28.81 dB instead of 31.35 and 28.72, darkness to 28.99 instead of 28.94, haze to 20.72 instead of
# 20.68; JPEG, rain, blur and mixtures stay within 0.01 dB.
_MISSED, _LEAST_FLOOR = 0.01, 0.05
# With 3,000 steps and nothing dropped the cross entropy of 9,000 held-out crops was 0.116 instead of 0.103.
_STEPS, _BATCH, _RATE, _DECAY, _JITTER, _DROPPED = 8000, 256, 2e-3, 1e-2, 0.05, 0.1
_BINS = 10


@dataclass(frozen=True)
class EvidenceReport:
    """By family, in the order of ``FAMILY_NAMES``: the threshold, the floor, the share of undamaged held-out crops that
    reach the threshold, the share of degraded ones that do (of those at middle severity and above), the expected
    calibration error, and the reliability curve: (mean evidence, share that have it, crops) of each of ten bins."""

    thresholds: tuple[float, ...]
    floors: tuple[float, ...]
    false_alarms: tuple[float, ...]
    found: tuple[float, ...]
    calibration_error: tuple[float, ...]
    curves: tuple[tuple[tuple[float, float, int], ...], ...]
    crops: int

    def to_dict(self) -> dict[str, object]:
        return {"families": FAMILY_NAMES} | asdict(self)


@dataclass(frozen=True)
class _Crops:
    """What the head sees of N crops, which families are in them (NxF), which are undamaged, which strongly so (NxF)."""

    statistics: Tensor
    labels: Tensor
    undamaged: Tensor
    untouched: Tensor  # neither haze nor darkness, whatever else
    strong: Tensor
    even: Tensor  # which half of the held-out photos


def calibrate_evidence(
    model: ClusIR,
    photos: PhotoSet,
    validation: PhotoSet,
    weights: dict[str, float],
    *,
    crops: int = 8000,
    crop_px: int = 256,
    seed: int = 0,
) -> EvidenceReport:
    """Fit ``model.evidence`` and set its thresholds. ``crops``: in all, a third of them held out. The random state is
    left as it was. Raises ValueError for a network without permissions."""
    if model.evidence is None:
        raise ValueError("this configuration has no evidence to calibrate")
    rng = np.random.default_rng(seed)
    chosen, apart = _choose(photos, validation, crops, rng)
    taught = _look(model, chosen, weights, crop_px, rng)
    return _settle(model, taught, _look(model, apart, weights, crop_px, rng), seed)


def _choose(
    photos: PhotoSet, validation: PhotoSet, crops: int, rng: np.random.Generator
) -> tuple[list[tuple[PhotoSet, int]], list[tuple[PhotoSet, int]]]:
    """The photos to learn from, ``crops`` times one, and half as many held out: a third of all, and validation's."""
    seen = [index for index in range(len(photos)) if index % 3]
    apart = [(photos, index) for index in range(len(photos)) if index % 3 == 0]
    apart += 3 * [(validation, index) for index in range(len(validation))]
    taught = [(photos, seen[int(k)]) for k in rng.integers(len(seen), size=crops)]
    return taught, [apart[int(k)] for k in rng.integers(len(apart), size=crops // 2)]


def judge_weights(
    path: Path, photos: PhotoSet, validation: PhotoSet, weights: dict[str, float], crops: int
) -> EvidenceReport:
    """:func:`calibrate_evidence` of the checkpoint at ``path``, then :func:`calibrate_exposure`,
    :func:`calibrate_trust`, which judges what came of both, and :func:`calibrate_pilot`, which filters what is kept. It
    is written again; ``evidence.json`` beside it holds what they found."""
    model = checkpoint.load(path)
    report = calibrate_evidence(model, photos, validation, weights, crops=crops)
    exposure = calibrate_exposure(model, *_choose(photos, validation, crops, np.random.default_rng(2)), weights)
    trust = calibrate_trust(model, *_choose(photos, validation, crops, np.random.default_rng(1)), weights)
    pilot = calibrate_pilot(model, *_choose(photos, validation, crops, np.random.default_rng(3)), weights)
    metadata = {key: text for key, text in checkpoint.read_metadata(path).items() if key != "config"}
    checkpoint.save(model, path, metadata)
    found = report.to_dict() | {"exposure": asdict(exposure), "trust": asdict(trust), "pilot": asdict(pilot)}
    (path.parent / "evidence.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return report


def reliability(
    evidence: NDArray[np.float64], present: NDArray[np.bool_]
) -> tuple[float, list[tuple[float, float, int]]]:
    """The expected calibration error (Naeini et al., AAAI 2015) of N probabilities, and its curve: of each of ten bins
    the mean probability, the share that was right and the count; bins without a member are left out."""
    place = np.minimum((evidence * _BINS).astype(int), _BINS - 1)
    curve = [
        (float(evidence[place == b].mean()), float(present[place == b].mean()), int((place == b).sum()))
        for b in range(_BINS)
        if (place == b).any()
    ]
    error = sum(count * abs(said - was) for said, was, count in curve) / max(len(evidence), 1)
    return float(error), curve


def _look(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
) -> _Crops:
    seen, there, strongly, photo = zip(*_each(model, chosen, weights, crop_px, rng), strict=True)
    statistics, labels, strong = (torch.stack(part) for part in (seen, there, strongly))
    even = torch.tensor([index % 2 == 0 for index in photo])
    tonal = [FAMILY_NAMES.index(family) for family in TONAL]
    return _Crops(statistics, labels, labels.sum(1) == 0, labels[:, tonal].sum(1) == 0, strong, even)


@torch.no_grad()
def _each(
    model: ClusIR,
    chosen: Sequence[tuple[PhotoSet, int]],
    weights: dict[str, float],
    crop_px: int,
    rng: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Statistics, which families are there, which strongly, and of which photo: the halves share none."""
    for drawn in draw_pictures(chosen, weights, crop_px, rng):
        recipe = drawn.recipe
        label = torch.tensor([float(family in recipe.families) for family in FAMILY_NAMES])
        middle = {family for step in recipe.steps if step.severity >= 0.5 for family in Recipe((step,), 0).families}
        strong = torch.tensor([float(family in middle) for family in FAMILY_NAMES])
        yield evidence_statistics(model, drawn.degraded), label, strong, drawn.photo


def _settle(model: ClusIR, taught: _Crops, held: _Crops, seed: int) -> EvidenceReport:
    """Fit the head on the one, set its scale, thresholds and floors on the other."""
    head = model.evidence
    assert head is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit(model, taught)
    with torch.no_grad():
        odds = head.judge(held.statistics)
    _scale(head.say, odds[held.even], held.labels[held.even])
    with torch.no_grad():
        evidence = torch.sigmoid(head.judge(held.statistics))
        thresholds, floors = torch.zeros(2, len(FAMILY_NAMES))
        for k, family in enumerate(FAMILY_NAMES):
            # Noise in a dark picture must not be taken for darkness: for tones all pictures without them count.
            quiet_crops = held.untouched if family in TONAL else held.undamaged
            quiet = torch.quantile(evidence[quiet_crops, k], 1 - _FALSE_ALARMS[family])
            thresholds[k] = min(max(_LEAST_THRESHOLD[family], float(quiet) + 1e-4), 1.0)
            floors[k] = thresholds[k]
            if family in TONAL:
                there = evidence[held.labels[:, k] > 0, k]
                faint = float(torch.quantile(there, _MISSED)) if len(there) else 0.0
                floors[k] = min(max(_LEAST_FLOOR, faint), float(thresholds[k]))
        head.thresholds.copy_(thresholds)
        head.floors.copy_(floors)
    return _report(evidence, held, thresholds, floors)


def _fit(model: ClusIR, crops: _Crops) -> None:
    head = model.evidence
    assert head is not None
    enter = head.read[0]
    assert isinstance(enter, nn.Linear)
    mean, spread = crops.statistics.mean(0), crops.statistics.std(0).clamp_min(1e-3)
    for layer in (*head.read, head.say):
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    with torch.no_grad():  # statistics in their own unit, by weights that an ordinary layer can hold
        enter.weight.div_(spread)
        enter.bias.sub_(enter.weight @ mean)
    parameters = [*head.read.parameters(), *head.say.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        rows = torch.randint(0, len(crops.labels), (min(_BATCH, len(crops.labels)),))
        seen = crops.statistics[rows]
        hidden = seen + _JITTER * spread * torch.randn_like(seen)
        for layer in head.read:
            hidden = F.dropout(layer(hidden), _DROPPED) if isinstance(layer, nn.ReLU) else layer(hidden)
        loss = F.binary_cross_entropy_with_logits(head.say(hidden), crops.labels[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _scale(say: nn.Linear, odds: Tensor, labels: Tensor) -> None:
    """Platt scaling of each family's log odds, folded into the last layer."""
    slope, shift = torch.ones(odds.shape[1], requires_grad=True), torch.zeros(odds.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, shift], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(odds * slope + shift, labels)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        if torch.isfinite(slope).all() and torch.isfinite(shift).all() and (slope > 0).all():
            say.weight.mul_(slope[:, None])
            say.bias.mul_(slope).add_(shift)


def _report(evidence: Tensor, held: _Crops, thresholds: Tensor, floors: Tensor) -> EvidenceReport:
    odd = ~held.even
    errors, curves, alarms, found = [], [], [], []
    for k in range(len(FAMILY_NAMES)):
        error, curve = reliability(evidence[odd, k].double().numpy(), held.labels[odd, k].numpy() > 0)
        errors.append(error)
        curves.append(tuple(curve))
        least = float(thresholds[k])
        alarms.append(float((evidence[held.undamaged, k] >= least).float().mean()))
        strong = held.strong[:, k] > 0
        found.append(float((evidence[strong, k] >= least).float().mean()) if strong.any() else float("nan"))
    levels = tuple(thresholds.tolist()), tuple(floors.tolist())
    return EvidenceReport(*levels, tuple(alarms), tuple(found), tuple(errors), tuple(curves), len(evidence))
