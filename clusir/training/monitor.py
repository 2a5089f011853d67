"""What a run shows of itself: a CSV log (TensorBoard where installed), validation, and the router's health."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusir.degrade.recipe import CAMERA_PRESETS, FAMILIES, FAMILY_NAMES, PRESETS, Recipe, Step, draw_step
from clusir.network.model import ClusIR
from clusir.quality.metrics import psnr
from clusir.training.data import PhotoSet, to_nchw

__all__ = ["LOG_NAME", "RouterMonitor", "TrainLog", "validate"]


LOG_NAME = "log.csv"
_TOGETHER = 8  # pictures that the network sees at a time in validation


class TrainLog:
    """Rows of figures to ``log.csv`` in long form (step, seconds, name, value), and to TensorBoard where importable.

    Long form, because figures come at different steps, and a resumed run may log others than its beginning did.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOG_NAME
        new = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if new:
            self._csv.writerow(("step", "seconds", "name", "value"))
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, seconds: float, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._csv.writerow((step, f"{seconds:.1f}", name, f"{value:.5g}"))
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class RouterMonitor:
    """Counts of what the routers did since the last look. Labels are used here, to measure, and nowhere in a loss."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._experts: dict[int, Tensor] = {}
        self._table: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self._entropy: dict[int, list[float]] = defaultdict(list)

    def add(self, posteriors: Sequence[Tensor], gates: Sequence[Tensor], names: Sequence[str]) -> None:
        for level, (at, gate) in enumerate(zip(posteriors, gates, strict=True)):
            posterior = at.cpu()  # in one piece: figure by figure a GPU would be waited for each time
            used = (gate.cpu() > 0).sum(0)
            self._experts[level] = self._experts.get(level, torch.zeros_like(used)) + used
            entropy = -(posterior * posterior.clamp_min(1e-8).log()).sum(1).mean()
            self._entropy[level].append(float(entropy))
            for row, name in zip(posterior, names, strict=True):
                if name in FAMILIES:  # single degradations only: a mixture has no one right cluster
                    counts = self._table[level].setdefault(FAMILIES[name], torch.zeros_like(row))
                    counts[int(row.argmax())] += 1

    def read(self) -> dict[str, float]:
        """Per level: purity, least used expert (share), clusters in use, posterior entropy in nats; then restart."""
        figures: dict[str, float] = {}
        for level, table in self._table.items():
            # Families are drawn unequally often: weigh them alike before asking which one a cluster means.
            share = torch.stack([row / row.sum() for row in table.values()])
            figures[f"purity/{level + 1}"] = float(share.max(0).values.sum() / share.sum())
            figures[f"clusters/{level + 1}"] = float((share.mean(0) > 0.02).sum())
        for level, used in self._experts.items():
            figures[f"least_expert/{level + 1}"] = float(used.min() / used.sum().clamp_min(1))
            figures[f"entropy/{level + 1}"] = float(np.mean(self._entropy[level]))
        self._reset()
        return figures


Row = tuple[Callable[[np.random.Generator], Recipe], tuple[str, ...]]
"""A row of the validation: what draws the recipe, and the families that may be mended."""


def _rows(model: ClusIR) -> dict[str, Row]:
    rows: dict[str, Row] = {name: (make, FAMILY_NAMES) for name, make in PRESETS.items()}
    if not model.config.permissions:
        return rows
    rows |= {name: (make, FAMILY_NAMES) for name, make in CAMERA_PRESETS.items()}
    # A hand on the wheel: what it leaves out must stay.
    rows["noise only, of haze + noise"] = (_haze_and_noise, ("noise",))
    rows["noise only, of low light"] = (PRESETS["low light"], ("noise",))
    rows["jpeg only, of rain + haze"] = (PRESETS["rain + haze"], ("jpeg",))
    rows["nothing, of noise 25"] = (PRESETS["noise 25"], ())
    return rows


def _haze_and_noise(rng: np.random.Generator) -> Recipe:
    steps = (draw_step("haze", 0.5, rng), Step("noise", {"sigma": 15.0}))
    return Recipe(steps, int(rng.integers(2**63)))


@torch.no_grad()
def validate(model: ClusIR, photos: PhotoSet, crop_px: int, limit: int, seed: int = 0) -> dict[str, float]:
    """Mean PSNR in dB per preset over the centre crops of at most ``limit`` photos, 8-bit quantised, and their mean.

    The degradation of each photo is fixed by ``seed``: figures of different steps compare. ``gain/<preset>`` is the
    figure minus that of the degraded input; the mean over ``PRESETS``, ``gain``, leaves out ``clean``, whose input is
    perfect. Networks with permissions have more rows: camera noise, against the camera's picture without it, and
    pictures of which only some degradations may be mended, against what should remain; ``shift/<row>`` is the largest
    distance of a channel's mean from that, in levels of 255.
    """
    multiple = model.config.size_multiple
    device = next(model.parameters()).device
    chosen = np.linspace(0, len(photos) - 1, min(limit, len(photos))).astype(int)
    after: dict[str, list[float]] = defaultdict(list)
    before: dict[str, list[float]] = defaultdict(list)
    shift: dict[str, float] = defaultdict(float)
    drawn = [((name, may), make) for name, (make, may) in _rows(model).items()]
    for index in chosen:
        photo = photos.photos[index]
        height, width = (min(crop_px, side // multiple * multiple) for side in photo.shape[:2])
        y, x = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        clean = photo[y : y + height, x : x + width].astype(np.float32) / np.float32(255.0)
        rows = [(*row, make(np.random.default_rng([seed, int(index), k]))) for k, (row, make) in enumerate(drawn)]
        for some in (rows[at : at + _TOGETHER] for at in range(0, len(rows), _TOGETHER)):
            degraded = [recipe.apply(clean) for _, _, recipe in some]
            asked = torch.tensor([[float(family in may) for family in FAMILY_NAMES] for _, may, _ in some])
            restored = model(to_nchw(degraded).to(device), permissions=asked.to(device)).restored
            outs = restored.permute(0, 2, 3, 1).clamp(0, 1).cpu().numpy()
            for (name, may, recipe), given, out in zip(some, degraded, outs, strict=True):
                aim = recipe.apply(clean, [family for family in FAMILY_NAMES if family not in may])
                after[name].append(min(psnr(np.rint(out * 255) / 255, aim), 60.0))
                before[name].append(min(psnr(given, aim), 60.0))
                if name not in PRESETS:
                    shift[name] = max(shift[name], float(np.abs((out - aim).mean(axis=(0, 1))).max()) * 255)
    figures = {f"psnr/{name}": float(np.mean(values)) for name, values in after.items()}
    gains = {f"gain/{name}": float(np.mean(after[name]) - np.mean(before[name])) for name in after if name != "clean"}
    mean = float(np.mean([gains[f"gain/{name}"] for name in PRESETS if name != "clean"]))
    return figures | gains | {f"shift/{name}": value for name, value in shift.items()} | {"gain": mean}
