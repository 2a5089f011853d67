"""How far a photo in tiles is from itself in one piece, of networks that pool over the picture: each tile by itself,
statistics of sampled windows, exact statistics.

``python -m tests.bench.shared_statistics [SEEDS]``: a table in Markdown, PSNR in dB, for pictures of 1500x1100 px made
from that many seeds (1).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from clusir.export.module import export_module
from clusir.runtimes import Restorer
from clusir.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("Squeeze", "Transposed", "InstanceNorms")


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests" / "export"), str(ROOT / "tests" / "export" / "pooling")]
    import pooled_networks as networks
    from test_statistics import natural, psnr

    torch.set_num_threads(1)
    print("| network | picture | each tile alone | sampled | exact |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            network = networks.seeded(getattr(networks, name)())
            path = export_module(network, "1x3x64x64", Path(folder) / f"{name}.onnx", backends=("ort",)).path
            for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
                picture = natural(1100, 1500, seed)
                with torch.no_grad():
                    made = network(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None])))
                at_once = made.numpy()[0].transpose(1, 2, 0).clip(0, 1)
                found = []
                for mode in ("alone", "sampled", "exact"):
                    exact = "exact" if mode == "exact" else "sampled"
                    with Restorer(path, backend="ort", threads=1, statistics=exact) as restorer:
                        if mode == "alone":
                            spec = restorer.spec
                            restorer.spec = ModelSpec(size=spec.size, tile_px=spec.tile_px, halo_px=spec.halo_px)
                        found.append(psnr(restorer.restore(picture), at_once))
                print(f"| {name} | {seed} | " + " | ".join(f"{value:.1f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
