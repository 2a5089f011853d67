"""Which size of tile pays: the shipped tile graph, and one of open size opened for several, by time for a pixel.

    python -m tests.bench.tile_sizes [--sizes 240,256,368,384,528] [--fixed 368] [--whole 1024] [--runs 5]

Exports the shipped checkpoint's tile graph with open height and width, and with each fixed size, then times single
tiles in turn on one thread, processor time, on each backend: the shipped graph, the open one as it is at 256 px and the
largest size up to 384, the open one opened for each size, the fixed ones, and whole graphs, which route by themselves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.names import ONNX_BACKENDS
from clusir.network import checkpoint
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.opening import open_runner
from clusir.spec import ModelSpec


def feeds(spec: ModelSpec, side: int) -> dict[str, Array]:
    """Noise, an even posterior and the first experts, for one tile of ``side`` pixels."""
    gate = [(np.arange(count) < spec.top_k).astype(np.float32) for count in spec.experts]
    posterior = [np.full(count, 1 / count, np.float32) for count in spec.clusters]
    return {
        spec.input_name: np.random.default_rng(0).random((1, spec.channels, side, side), dtype=np.float32),
        "posterior": np.concatenate(posterior)[None],
        "gate": np.concatenate(gate)[None],
        "statistics": np.full((1, spec.statistics), 0.5, np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default="240,256,368,384,528")
    parser.add_argument("--fixed", default="")
    parser.add_argument("--whole", default="")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    sizes, fixed_sizes, pieces = (
        [int(size) for size in sides.split(",") if size] for sides in (asked.sizes, asked.fixed, asked.whole)
    )
    shipped = find_model().tile
    assert shipped is not None
    with tempfile.TemporaryDirectory() as folder:
        model, digest = checkpoint.resolve(None, 0)
        config = ExportConfig(dynamic=True, graphs=("tile",), checkpoint_sha256=digest)
        (written,) = write_graphs(model, Path(folder), "open", config)
        whole = (
            write_graphs(model, Path(folder), "open", replace(config, graphs=("whole",)))[0].path if pieces else None
        )
        statics = {}
        for side in fixed_sizes:
            fixed = replace(config, dynamic=False, tile_px=side)
            statics[side] = write_graphs(model, Path(folder), f"fixed{side}", fixed)[0].path
        for backend in ONNX_BACKENDS:
            steps: dict[str, Callable[[], object]] = {}
            sides: dict[str, int] = {}
            runners = []
            for name, path, side, fixed in [
                ("shipped", shipped, 0, False),
                ("open", written.path, 256, False),
                ("open", written.path, max(s for s in sizes if s <= 384), False),
                *(("open, opened for the size", written.path, size, True) for size in sizes),
                *(("fixed", path, size, False) for size, path in statics.items()),
                *(("whole, opened for the size", whole, size, True) for size in pieces if whole),
            ]:
                runner = open_runner(path, backend, "cpu", 1)
                side = side or runner.spec.tile_px
                runner.expect((side, side) if fixed else None)
                runners.append(runner)
                name = f"{name}, {side} px"
                sides[name] = side
                given = feeds(runner.spec, side)
                steps[name] = partial(runner.run, given if runner.spec.graph == "tile" else {"image": given["image"]})
            taken = measure_alternating(steps, asked.runs, clock=time.process_time)
            for name, seconds in taken.items():
                pixels = sides[name] ** 2 / 1e6
                print(f"{backend} {name}: {1e3 * min(seconds):.0f} ms, {min(seconds) / pixels:.3f} s/MP")
            for runner in runners:
                runner.close()


if __name__ == "__main__":
    main()
