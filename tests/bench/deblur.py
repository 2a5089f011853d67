"""What the deblurring blend is worth without any layer behind it: ``measure_deblur.py --data PHOTOS [--batches 300]``.

Fits the blend as a training run does before its first step, then prints the gain over the degraded input on the centre
crops (192 px) of 8 held-out photos, in dB, for each preset of ``clusir.degrade.recipe``. Before that: what single
filters for straight motion blur of 9 px gain on such crops, cut sharply and under the window, with the right
direction and one that is 4 degrees off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clusir.degrade.optics import filter_image
from clusir.degrade.recipe import PRESETS, Recipe, Step
from clusir.network import deblur
from clusir.network.model import CONFIGS, ClusIR
from clusir.quality.metrics import psnr
from clusir.training.config import TrainConfig
from clusir.training.data import BatchPlan, PhotoSet, draw_batch
from clusir.training.deblur import DEBLUR_WEIGHTS, calibrate_deblur

Picture = NDArray[np.float32]


def crops(photos: PhotoSet) -> list[Picture]:
    chosen = [photos.photos[index] for index in np.linspace(0, len(photos) - 1, 8).astype(int)]
    corners = [[(side - 192) // 2 for side in photo.shape[:2]] for photo in chosen]
    return [
        photo[y : y + 192, x : x + 192].astype(np.float32) / np.float32(255)
        for photo, (y, x) in zip(chosen, corners, strict=True)
    ]


def gain(better: Picture, degraded: Picture, clean: Picture) -> float:
    return min(psnr(np.clip(better, 0, 1), clean), 60.0) - min(psnr(degraded, clean), 60.0)


def single_filters(pictures: list[Picture]) -> None:
    angles = np.random.default_rng(0).uniform(0, 180, len(pictures))
    for windowed in (False, True):
        for off in (0.0, 4.0):
            gains = []
            for angle, clean in zip(angles, pictures, strict=True):
                path = {"length_px": 9.0, "angle_deg": float(angle), "bend": 0.0}
                blurred = Recipe((Step("motion_blur", path),), 0).apply(clean)
                kernel = deblur.line_kernel(9.0, float(angle) + off)
                answer = deblur.sharpening(kernel, windowed=windowed).astype(np.float32)
                grey = filter_image(blurred.mean(2, keepdims=True), answer)
                gains.append(gain(blurred + grey, blurred, clean))
            cut = "under the window" if windowed else "cut sharply"
            print(f"one filter, {cut}, {off:.0f} degrees off: {np.mean(gains):+.2f} dB at 9 px of motion", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=300)
    given = parser.parse_args()
    held = crops(PhotoSet(given.data, "validation"))
    single_filters(held)
    torch.manual_seed(0)
    model, config = ClusIR(CONFIGS["tiny"]).eval(), TrainConfig(steps=1)
    photos = PhotoSet(given.data, "train")
    plan = BatchPlan(16, 96, 0, config.counts, config.severities)
    batches = (draw_batch(photos, plan, (0, 0, 1, index + 1), DEBLUR_WEIGHTS, "blur") for index in range(given.batches))
    print(f"the blend on the last tenth of its crops: {calibrate_deblur(model, batches):+.2f} dB")
    assert model.deblur is not None
    assert model.cue is not None
    assert model.traces is not None
    for name, draw in PRESETS.items():
        gains = []
        for index, clean in enumerate(held):
            degraded = draw(np.random.default_rng([0, index])).apply(clean)
            image = torch.from_numpy(np.ascontiguousarray(degraded.transpose(2, 0, 1))[None])
            with torch.inference_mode():
                seen = model.cue.statistics(image, model.traces(image))
                added = model.deblur(image, lambda seen=seen: seen)[0].permute(1, 2, 0).numpy()
            gains.append(gain(degraded + added, degraded, clean))
        print(f"{name}: {np.mean(gains):+.2f} dB", flush=True)


if __name__ == "__main__":
    main()
