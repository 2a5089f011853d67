"""A picture in one piece by a whole graph of open size, beside tiles and windows: PSNR, experts chosen, the time.

    python -m tests.bench.bounds.one_piece PHOTOS [--photos 14] [--side 640]

Exports the shipped checkpoint's whole graph with open height and width. Every photo is shrunk to a long side of
``--side`` px, and degraded in turn; both restore with ``--fix auto``, on ONNX Runtime, one thread. Seconds are those of
the runtime by the clock, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clusir.degrade.recipe import degrade
from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.network import checkpoint
from clusir.quality import psnr
from clusir.runtimes import Restorer
from clusir.runtimes.restore.routing import Routing
from tests.bench.routing_windows import KINDS


def experts(routing: Routing | None, counts: tuple[int, ...]) -> list[int]:
    """The expert with the largest gate of each block."""
    if routing is None:
        return []
    return [int(part.argmax()) for part in np.split(routing.gate.reshape(-1), np.cumsum(counts)[:-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos_folder", type=Path)
    parser.add_argument("--photos", type=int, default=14)
    parser.add_argument("--side", type=int, default=640)
    asked = parser.parse_args()
    files = sorted(p for p in asked.photos_folder.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    files = files[:: max(1, len(files) // asked.photos)][: asked.photos]
    rng = np.random.default_rng(5)
    rows = defaultdict[str, list[tuple[float, ...]]](list)
    with tempfile.TemporaryDirectory() as folder:
        model, digest = checkpoint.resolve(None, 0)
        config = ExportConfig(dynamic=True, graphs=("whole",), checkpoint_sha256=digest)
        (written,) = write_graphs(model, Path(folder), "open", config)
        with Restorer(None, "ort", threads=1) as tiles, Restorer(written.path, "ort", threads=1) as whole:
            whole.spec = replace(whole.spec, tile_px=4096)
            for file in files:
                image = Image.open(file).convert("RGB")
                scale = asked.side / max(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                clean = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32) / np.float32(255)
                for kind in KINDS:
                    damaged = clean if kind == "clean" else degrade(clean, kind, float(rng.uniform(0.2, 0.8)), rng)
                    given = np.rint(damaged.clip(0, 1) * 255).astype(np.uint8)
                    (cut, how), (one, what) = tiles.restore_and_tell(given), whole.restore_and_tell(given)
                    errors = [min(60.0, psnr(clean, out / np.float32(255))) for out in (given, cut, one)]
                    other = experts(how.routing, tiles.spec.experts) != experts(what.routing, tiles.spec.experts)
                    rows[kind].append((*errors, other, how.infer_s, what.infer_s))
    print("| degradation | in, dB | tiles, dB | one piece, dB | at worst | other experts | tiles, s | one piece, s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for kind, found in rows.items():
        all_of = np.array(found)
        mean, worst = all_of.mean(0), float((all_of[:, 2] - all_of[:, 1]).min())
        print(
            f"| {kind.replace('_', ' ')} | {mean[0]:.2f} | {mean[1]:.2f} | {mean[2]:.2f} | {worst:+.2f} |"
            f" {int(all_of[:, 3].sum())} of {len(found)} | {mean[4]:.2f} | {mean[5]:.2f} |"
        )


if __name__ == "__main__":
    main()
