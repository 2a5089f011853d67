"""What darktable's tiles cost: the shipped network's package in a copy of its tiler, beside clusir-run, on noise.

``python -m tests.bench.hosts.darktable_tiles [PHOTOS]``: the table of docs/hosts.md.
"""

from __future__ import annotations

import sys

import numpy as np

from clusir.export.formats.hosts.darktable import Darktable
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from clusir.runtimes.runners.files import find_model
from tests.export.darktable_tiler import tiled

SIDE_PX = 384


def main(photos: int = 3) -> None:
    host = Darktable()
    source = host.prepare(open_source(find_model(None).whole))
    probe = Probe(host_form(source, host.form(source)), threads=1)
    rng = np.random.default_rng(5)
    print("| noise | input | clusir-run | darktable's tiles | cost |\n|---|---:|---:|---:|---:|")
    with Restorer(backend="ort", threads=1) as restorer:
        for sigma in (15, 25, 50):
            rows = []
            for seed in range(20, 20 + photos):
                clean = natural_picture(SIDE_PX, SIDE_PX, 3, seed)
                noisy = (clean + rng.normal(0, sigma / 255, clean.shape)).clip(0, 1)
                noisy = (np.rint(noisy * 255) / 255).astype(np.float32)
                ours = np.asarray(restorer.restore(np.ascontiguousarray(noisy[0].transpose(1, 2, 0))))
                tiles = tiled(lambda tile: probe.run({"input": tile})["output"], noisy, source.spec.tile_px)
                answers = (noisy, ours.transpose(2, 0, 1)[None], tiles.clip(0, 1))
                rows.append([psnr(answer, clean) for answer in answers])
            given, run, host_db = np.mean(rows, axis=0)
            print(f"| {sigma} | {given:.1f} | {run:.1f} | {host_db:.1f} | {run - host_db:.2f} |", flush=True)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
