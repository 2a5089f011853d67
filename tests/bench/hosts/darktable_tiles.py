"""What darktable's tiles cost: the package's graph in a copy of its tiler, beside clusir-run --fix noise, on noise.

``python -m tests.bench.hosts.darktable_tiles BUNDLE/model.onnx [PHOTOS]``: the table of docs/hosts.md. BUNDLE: of
``clusir-export --onnx BUNDLE --dynamic``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from clusir.export.formats.hosts.darktable import Darktable
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from tests.export.darktable_tiler import tiled

SIDE_PX = 640
TILES = (512, 768, 1024)


def main(whole: Path, photos: int = 2) -> None:
    host = Darktable()
    source = host.prepare(open_source(whole))
    probe = Probe(host_form(source, host.form(source)), threads=1)
    rng = np.random.default_rng(5)
    print("| noise | input | clusir-run | " + " | ".join(f"tiles of {px} px" for px in TILES) + " |")
    print("|---|---:|---:|" + "---:|" * len(TILES), flush=True)
    with Restorer(whole, backend="ort", threads=1) as restorer:
        for sigma in (15, 25, 50):
            rows = []
            for seed in range(20, 20 + photos):
                clean = natural_picture(SIDE_PX, SIDE_PX, 3, seed)
                noisy = (clean + rng.normal(0, sigma / 255, clean.shape)).clip(0, 1)
                noisy = (np.rint(noisy * 255) / 255).astype(np.float32)
                ours = np.asarray(restorer.restore(np.ascontiguousarray(noisy[0].transpose(1, 2, 0)), fix="noise"))
                parts = [tiled(lambda tile: probe.run({"input": tile})["output"], noisy, px).clip(0, 1) for px in TILES]
                rows.append([psnr(answer, clean) for answer in (noisy, ours.transpose(2, 0, 1)[None], *parts)])
            given, run, *found = np.mean(rows, axis=0)
            told = " | ".join(f"{db:.2f} ({db - run:+.2f})" for db in found)
            print(f"| {sigma} | {given:.2f} | {run:.2f} | {told} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]))
