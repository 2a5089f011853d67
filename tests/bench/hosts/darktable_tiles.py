"""What darktable's tiles cost: the package's graph in a copy of its tiler, beside clusir-run --fix noise, on noise.

``python -m tests.bench.hosts.darktable_tiles BUNDLE/model.onnx [PHOTOS]``: the table of docs/hosts.md. BUNDLE: of
``clusir-export --onnx BUNDLE --dynamic``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from clusir.export.formats.hosts.base import Array, Source
from clusir.export.formats.hosts.darktable import OVERLAP_PX, Darktable
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from tests.export.darktable_tiler import tiled

SIDE_PX = 640
TILES = (512, 768, 1024)


def seam(answer: Array, clean: Array, tile_px: int) -> float:
    """The mean step of the error across the tiles' cuts, over that between other columns: 1 where no seam is."""
    steps = np.abs(np.diff(answer - clean, axis=3)).mean(axis=(0, 1, 2))
    every = tile_px - 2 * OVERLAP_PX
    cuts = [column - 1 for column in range(every, answer.shape[3], every)]
    return float(steps[cuts].mean() / np.delete(steps, cuts).mean())


def graph(source: Source) -> Probe:
    return Probe(host_form(source, Darktable().form(source)), threads=1)


def main(whole: Path, photos: int = 2) -> None:
    given = open_source(whole)
    constants, deciding = graph(Darktable().prepare(given)), graph(given)
    rng = np.random.default_rng(5)
    print("| noise | input | clusir-run | " + " | ".join(f"tiles of {px} px" for px in TILES), end="")
    print(
        f" | seam | {TILES[0]} px, each tile decides | seam |\n|---|---:|---:|" + "---:|" * (len(TILES) + 3), flush=True
    )
    with Restorer(whole, backend="ort", threads=1, fix="noise") as restorer:
        for sigma in (15, 25, 50):
            rows, seams = [], []
            for seed in range(20, 20 + photos):
                clean = natural_picture(SIDE_PX, SIDE_PX, 3, seed)
                noisy = (clean + rng.normal(0, sigma / 255, clean.shape)).clip(0, 1)
                noisy = (np.rint(noisy * 255) / 255).astype(np.float32)
                ours = np.asarray(restorer.restore(np.ascontiguousarray(noisy[0].transpose(1, 2, 0))))
                parts = [through(constants, noisy, px) for px in TILES]
                own = through(deciding, noisy, TILES[0])
                answers = (noisy, ours.transpose(2, 0, 1)[None], *parts, own)
                rows.append([psnr(answer, clean) for answer in answers])
                seams.append([seam(answer, clean, TILES[0]) for answer in (parts[0], own)])
            given_db, run, *found = np.mean(rows, axis=0)
            *told, last = [f"{db:.2f} ({db - run:+.2f})" for db in found]
            still, each = np.mean(seams, axis=0)
            cells = [f"{given_db:.2f}", f"{run:.2f}", *told, f"{still:.2f}", last, f"{each:.2f}"]
            print(f"| {sigma} | {' | '.join(cells)} |", flush=True)


def through(probe: Probe, noisy: Array, tile_px: int) -> Array:
    return tiled(lambda tile: probe.run({"input": tile})["output"], noisy, tile_px).clip(0, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
