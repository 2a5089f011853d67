"""What darktable's tiles cost: the package's graph in a copy of its tiler, beside clusir-run --fix noise.

``python -m tests.bench.hosts.darktable_tiles BUNDLE/model.onnx [PHOTOS]``: the tables of docs/hosts.md. BUNDLE: of
``clusir-export --onnx BUNDLE --dynamic``. The first table is dB on noise; the second is how far neighbouring tiles go
apart in brightness, in tiles of 256 px of the shipped network: where tiles are small, they differ most.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from clusir.degrade import degrade
from clusir.export.formats.hosts.base import Array, Source
from clusir.export.formats.hosts.darktable import OVERLAP_PX, Darktable
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.routing.frozen import frozen_for_noise
from clusir.export.formats.hosts.routing.told import told
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from clusir.runtimes.runners.files import find_model
from tests.export.darktable_tiler import tiled

SIDE_PX = 640
TILES = (512, 768, 1024, 2048)
PHOTOS = (20, 21, 18)  # of scikit-image: coffee, a rocket, an astronaut
HARM_PX = (512, 256)  # of pictures, and of tiles
HARM_PHOTOS = (18, 20, 24)
VARIANTS: dict[str, Callable[[Source], Source]] = {
    "told to mend noise": told,
    "constants": frozen_for_noise,
    "each tile decides what to mend": lambda source: source,
}


def seam(answer: Array, clean: Array, tile_px: int) -> float:
    """The mean step of the error across the tiles' cuts, over that between other columns: 1 where no seam is."""
    steps = np.abs(np.diff(answer - clean, axis=3)).mean(axis=(0, 1, 2))
    every = tile_px - 2 * OVERLAP_PX
    cuts = [column - 1 for column in range(every, answer.shape[3], every)]
    return float(steps[cuts].mean() / np.delete(steps, cuts).mean())


def apart(answer: Array, picture: Array, tile_px: int) -> float:
    """How much more one tile was brightened than its neighbour, at most, in levels of 8 bits."""
    every = tile_px - 2 * OVERLAP_PX
    rows, columns = (range(0, side - side % every, every) for side in picture.shape[2:])
    change = (answer - picture).mean(axis=(0, 1))
    means = np.reshape(
        [change[top : top + every, left : left + every].mean() for top, left in product(rows, columns)],
        (len(rows), len(columns)),
    )
    return 255 * max(float(np.abs(np.diff(means, axis=axis)).max()) for axis in (0, 1))


def graph(source: Source) -> Probe:
    return Probe(host_form(source, Darktable().form(source)), threads=1)


def through(probe: Probe, picture: Array, tile_px: int) -> Array:
    return tiled(lambda tile: probe.run({"input": tile})["output"], picture, tile_px).clip(0, 1)


def decibels(whole: Path, photos: int) -> None:
    given = open_source(whole)
    shipped, constants = graph(Darktable().prepare(given)), graph(frozen_for_noise(given))
    tiles = " | ".join(f"tiles of {px} px" for px in TILES)
    print(f"| noise | input | clusir-run | seam | {tiles} | seam | constants, {TILES[0]} px | seam |")
    print("|---|---:|---:|---:|" + "---:|" * (len(TILES) + 3), flush=True)
    with Restorer(whole, backend="ort", threads=1, fix="noise") as restorer:
        for sigma in (15, 25, 50):
            rows, seams = [], []
            for seed in PHOTOS[:photos]:
                clean = natural_picture(SIDE_PX, SIDE_PX, 3, seed)
                noisy = (clean + np.random.default_rng(100 * seed + sigma).normal(0, sigma / 255, clean.shape)).clip(
                    0, 1
                )
                noisy = (np.rint(noisy * 255) / 255).astype(np.float32)
                run = np.asarray(restorer.restore(np.ascontiguousarray(noisy[0].transpose(1, 2, 0))))
                ours = run.transpose(2, 0, 1)[None]
                parts = [through(shipped, noisy, px) for px in TILES]
                still = through(constants, noisy, TILES[0])
                rows.append([psnr(answer, clean) for answer in (noisy, ours, *parts, still)])
                seams.append([seam(answer, clean, TILES[0]) for answer in (ours, parts[0], still)])
            before, base, *found = np.mean(rows, axis=0)
            *told_db, constant = [f"{db:.2f} ({db - base:+.2f})" for db in found]
            ours_seam, told_seam, still_seam = (f"{value:.2f}" for value in np.mean(seams, axis=0))
            cells = [f"{before:.2f}", f"{base:.2f}", ours_seam, *told_db, told_seam, constant, still_seam]
            print(f"| {sigma} | {' | '.join(cells)} |", flush=True)


def pictures(seed: int) -> dict[str, Array]:
    """One photo, undamaged and damaged as a scene is; 1x3xHxW."""
    clean = natural_picture(*HARM_PX[:1] * 2, 3, seed)
    photo, rng = np.ascontiguousarray(clean[0].transpose(1, 2, 0)), np.random.default_rng(seed)
    scenes = {kind: degrade(photo, kind, 0.6, rng).transpose(2, 0, 1)[None] for kind in ("haze", "low_light")}
    share = np.linspace(0, 1, HARM_PX[0], dtype=np.float32)  # from left to right
    scenes["haze, more to the right"] = clean * (1 - share) + scenes["haze"] * share
    scenes["noise, more to the right"] = clean + share * rng.normal(0, 40 / 255, clean.shape)
    return {name: scene.clip(0, 1).astype(np.float32) for name, scene in {"undamaged": clean, **scenes}.items()}


def harm() -> None:
    given = open_source(find_model(None).whole)
    probes = {name: graph(make(given)) for name, make in VARIANTS.items()}
    print("| picture | " + " | ".join(probes) + " |\n|---|" + "---:|" * len(probes), flush=True)
    scenes = [pictures(seed) for seed in HARM_PHOTOS]
    for name in scenes[0]:
        worst = {
            which: max(apart(through(probe, scene[name], HARM_PX[1]), scene[name], HARM_PX[1]) for scene in scenes)
            for which, probe in probes.items()
        }
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in worst.values()) + " |", flush=True)


def main(whole: Path, photos: int = len(PHOTOS)) -> None:
    decibels(whole, photos)
    print(
        f"\nHow much more a tile of {HARM_PX[1]} px is brightened than its neighbour, at most, in levels of 8 bits:\n"
    )
    harm()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
