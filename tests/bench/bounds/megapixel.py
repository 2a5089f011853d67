"""Bounds of the time in which a megapixel is restored: its multiply-accumulates, at the speed of the best convolution.

    python -m tests.bench.bounds.megapixel [OTHER.tile.onnx ...] [--rounds 9]

Processor time on one thread of ONNX Runtime, in turns: two 3x3 convolutions of 64 channels (the peak), a tile, and the
router on nine windows; then what pictures take by these, and what they would take if each pixel were computed once.
Other tile graphs have their multiply-accumulates counted beside the shipped one's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from clusir.export.graph.complexity import count_macs
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.restore.tiling import plan_picture
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.opening import open_runner
from tests.bench.tile_sizes import feeds
from tests.bench.timing import peak_graph

PICTURES = ((1024, 1024), (3000, 4000))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    files = find_model()
    assert files.tile is not None
    assert files.router is not None
    for path in (files.tile, *asked.others):
        print(f"{path}: {sum(count_macs(onnx.load(path)).values()) / 1e9:.3f} G multiply-accumulates a tile")
    macs = sum(count_macs(onnx.load(files.tile)).values())
    graph, picture, peak_macs = peak_graph()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tile, router = (open_runner(path, "ort", "cpu", 1) for path in (files.tile, files.router))
    side = tile.spec.tile_px
    windows = np.random.default_rng(0).random((9, tile.spec.channels, side, side), dtype=np.float32)
    told = {"permissions": np.full((1, len(router.spec.families)), -1, np.float32)}
    steps: dict[str, Callable[[], object]] = {
        "the peak": partial(session.run, None, {"x": picture}),
        "a tile": partial(tile.run, feeds(tile.spec, side)),
        "nine windows": partial(router.run, {router.spec.input_name: windows} | told),
    }
    best = {name: min(t) for name, t in measure_alternating(steps, asked.rounds, clock=time.process_time).items()}
    peak_s = best["the peak"] * macs / peak_macs  # of a tile
    for name, seconds in best.items():
        print(f"{name}: {1e3 * seconds:.1f} ms")
    print(f"a tile at the peak: {1e3 * peak_s:.1f} ms, {peak_s / best['a tile']:.0%} of its time")
    for height, width in PICTURES:
        tiles, least = plan_picture(height, width, tile.spec).count, height * width / side**2
        routing = best["nine windows"]
        taken = tiles * best["a tile"] + routing
        computed = f"{(tiles + 9) / least:.2f} pixels for each"
        print(f"{width}x{height}: {tiles} tiles and nine windows, {computed}, {taken:.2f} s")
        for what, seconds in (
            ("each pixel once, and the windows", least * best["a tile"] + routing),
            ("each pixel once", least * best["a tile"]),
            ("each pixel once, at the peak", least * peak_s),
        ):
            print(f"    {what}: {seconds:.2f} s, {seconds / taken:.2f}")


if __name__ == "__main__":
    main()
