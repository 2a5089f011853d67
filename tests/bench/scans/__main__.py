"""``python -m tests.bench.scans [--longest 65536]``: errors against the float64 recurrence, then speeds of the forms.

Error: of the largest value that the recurrence takes. Speeds are ratios to the exported form, all forms taking turns
in one process, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx

from clusir.export.graph.session import Probe
from tests.bench.scans.forms import FORMS, exported

DECAYS = {
    "chosen by the data, 0..1": lambda rng, shape: rng.random(shape),
    "exp(-U(0, 0.1))": lambda rng, shape: np.exp(-0.1 * rng.random(shape)),
    "0.9999": lambda rng, shape: np.full(shape, 0.9999),
    "1 (a sum)": lambda rng, shape: np.ones(shape),
    "exp(-40), products underflow": lambda rng, shape: np.full(shape, np.exp(-40.0)),
}


def recurrence(both: np.ndarray) -> np.ndarray:
    """The states in float64, both = (decay, entry)."""
    decay, entry = both.astype(np.float64)
    state, made = np.zeros(entry.shape[1]), np.empty(entry.shape)
    for t in range(len(entry)):
        state = decay[t] * state + entry[t]
        made[t] = state
    return made


def on(backend: str, model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    """The model on a runtime, one thread, float32."""
    if backend == "ort":
        probe = Probe(model, threads=1)
        return lambda both: probe.run({"image": both})["restored"]
    import openvino

    exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", exact)
    return lambda both: compiled({"image": both})[0]


def errors(longest: int, width: int = 16) -> None:
    lengths = [n for n in (1, 2, 15, 16, 17, 64, 256, 1024, 4096, 16384, 65536) if n <= longest]
    print("| decay | runtime | " + " | ".join(map(str, lengths)) + " |\n|---|---|" + "---:|" * len(lengths))
    for backend in ("ort", "openvino"):
        run = on(backend, exported())
        for name, draw in DECAYS.items():
            cells = []
            for length in lengths:
                rng = np.random.default_rng(length)
                both = np.stack([draw(rng, (length, width)), rng.standard_normal((length, width))]).astype(np.float32)
                want = recurrence(both)
                cells.append(f"{np.abs(run(both) - want).max() / max(1.0, np.abs(want).max()):.1e}")
            print(f"| {name} | {backend} | " + " | ".join(cells) + " |", flush=True)


def speeds(turns: int) -> None:
    sizes = ((1024, 1024), (4096, 1024), (4096, 4096), (16384, 1024))
    print("\n| runtime | form | " + " | ".join(f"{n} x {r}" for n, r in sizes) + " |\n|---|---|" + "---:|" * len(sizes))
    for backend in ("ort", "openvino"):
        runs = {name: on(backend, build()) for name, build in FORMS.items()}
        cells: dict[str, list[str]] = {name: [] for name in FORMS}
        for length, width in sizes:
            rng = np.random.default_rng(0)
            both = np.stack([rng.random((length, width)), rng.standard_normal((length, width))]).astype(np.float32)
            taken: dict[str, list[float]] = {name: [] for name in FORMS}
            for turn in range(turns + 1):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run(both)
                    if turn:
                        taken[name].append(time.perf_counter() - start)
            for name in FORMS:
                ratios = [a / b for a, b in zip(taken[name], taken[next(iter(FORMS))], strict=True)]
                cells[name].append(f"{statistics.median(ratios):.2f}")
        for name, row in cells.items():
            print(f"| {backend} | {name} | " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    errors(chosen.longest)
    speeds(chosen.turns)


if __name__ == "__main__":
    main()
