"""Why motion blur needs its direction: short trainings on straight motion blur of 9 px alone.

    python tests/bench/direction.py WEIGHTS --data PHOTOS --mode fixed|told|cue|none [--all-lengths]

WEIGHTS: a checkpoint of ``tiny`` without a degradation cue, to start from. ``fixed``: the blur always runs along the
rows. ``told``: it runs anywhere, and the decoder's gains are given its direction (12 soft bins). ``cue``: the
degradation cue of ``clusir.network.cues`` has to find it. ``none``: neither. ``--all-lengths`` trains on bent paths of
3 to 19 px, as the degradation draws them, and judges on straight ones of 9 px all the same.

Each run has the same batches (``--steps``, 200, of 8 crops of 96 px), AdamW at 8e-4 with a cosine, one thread; prints
the gain over the blurred input on 8 held-out photos with two directions each, in dB.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clusir.degrade.recipe import Recipe, Step, draw_step
from clusir.network.cues import ClusterGain
from clusir.network.model import CONFIGS, ClusIR
from clusir.quality.metrics import psnr
from clusir.training import losses
from clusir.training.data import PhotoSet
from clusir.training.loop import start_from

BINS, LENGTH_PX, CROP_PX, MARGIN_PX = 12, 9.0, 96, 8


class Told(nn.Module):
    """A cluster gain that is given the direction beside the posterior."""

    def __init__(self, gain: ClusterGain) -> None:
        super().__init__()
        self.gain, self.direction = gain, torch.zeros(1, BINS)
        self.by_direction = nn.Linear(BINS, gain.by_cluster.out_features, bias=False)
        nn.init.zeros_(self.by_direction.weight)

    def forward(self, posterior: Tensor, cue: Tensor | None = None) -> Tensor:
        told: Tensor = 10 * self.by_direction(self.direction)
        return self.gain(posterior, cue) + told[:, :, None, None]


class Trial:
    def __init__(self, mode: str, weights: Path, data: Path, all_lengths: bool) -> None:
        self.all_lengths = all_lengths
        torch.manual_seed(0)
        config = CONFIGS["tiny"]
        self.model = ClusIR(replace(config, deblur=False, damage_cue=config.damage_cue if mode == "cue" else 0))
        start_from(self.model, weights)
        self.mode, self.told = mode, []
        if mode == "told":
            assert self.model.gains is not None
            for stage in self.model.gains:
                for index in range(len(stage)):
                    stage[index] = Told(stage[index])
                    self.told.append(stage[index])
        self.train, self.held = PhotoSet(data, "train"), PhotoSet(data, "validation")

    def recipe(self, rng: np.random.Generator, *, judged: bool) -> Recipe:
        if self.all_lengths and not judged:
            return Recipe((draw_step("motion_blur", float(rng.uniform()), rng),), 0)
        angle = 0.0 if self.mode == "fixed" else float(rng.uniform(0.0, 180.0))
        return Recipe((Step("motion_blur", {"length_px": LENGTH_PX, "angle_deg": angle, "bend": 0.0}),), 0)

    def restore(self, pictures: list[NDArray[np.float32]], recipes: list[Recipe]) -> Tensor:
        angles = np.array([[recipe.steps[0].parameters["angle_deg"]] for recipe in recipes])
        apart = (angles - np.arange(BINS) * 180 / BINS + 90) % 180 - 90
        for gain in self.told:
            gain.direction = torch.from_numpy(np.clip(1 - np.abs(apart) * BINS / 180, 0, 1)).float()
        restored: Tensor = self.model(batch_of(pictures)).restored
        return restored

    @torch.no_grad()
    def gain_db(self) -> float:
        self.model.eval()
        gains = []
        for index in np.linspace(0, len(self.held) - 1, 8).astype(int):
            photo = self.held.photos[index]
            y, x = ((side - 192) // 2 for side in photo.shape[:2])
            clean = photo[y : y + 192, x : x + 192].astype(np.float32) / np.float32(255)
            for turn in range(2):
                recipe = self.recipe(np.random.default_rng([5, int(index), turn]), judged=True)
                blurred = recipe.apply(clean)
                restored = self.restore([blurred], [recipe])[0].permute(1, 2, 0).clamp(0, 1).numpy()
                gains.append(psnr(restored, clean) - psnr(blurred, clean))
        return float(np.mean(gains))

    def run(self, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
        for step in range(steps):
            if step % 100 == 0 and step:
                print(f"{self.mode}: {step} steps, {self.gain_db():+.2f} dB", flush=True)
            rng = np.random.default_rng([1, step])
            crops = [self.train.draw_crop(self.train.draw_index(rng), CROP_PX + 2 * MARGIN_PX, rng) for _ in range(8)]
            recipes = [self.recipe(rng, judged=False) for _ in crops]
            blurred = [recipe.apply(crop)[inner] for recipe, crop in zip(recipes, crops, strict=True)]
            for group in optimizer.param_groups:
                group["lr"] = 8e-4 * min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
            self.model.eval()  # no noise in the routers
            restored, clean = self.restore(blurred, recipes), batch_of([crop[inner] for crop in crops])
            loss = losses.log_error(restored, clean) + 0.05 * losses.spectrum_error(restored, clean)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
        print(f"{self.mode}: {steps} steps, {self.gain_db():+.2f} dB")


def batch_of(pictures: list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mode", choices=("fixed", "told", "cue", "none"), required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--all-lengths", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    Trial(given.mode, given.weights, given.data, given.all_lengths).run(given.steps)


if __name__ == "__main__":
    main()
