"""A large photo through the C++ library and through Python on one back end, in turns: time, processor time, memory.

    python tests/bench/megapixels.py [--backend ort openvino] [--size 4000 3000] [--turns 3] [--threads 2]

Every turn is a process of its own that opens the model and restores the photo once; ``seconds`` is the restoration,
processor time and peak memory (resident, as the kernel counts it) are the whole process's. Builds the library first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from toolchain import BACKENDS, CPP, build_cpp, openvino_cmake, ort_library, photo, shipped_model

from clusir.runtimes.restore.restorer import Restorer


def restore_once(backend: str, threads: int, width: int, height: int, source: Path, result: Path) -> None:
    """What clusir-raw does, in Python: 8-bit RGB without a header from SOURCE to RESULT; prints the seconds."""
    pixels = np.fromfile(source, np.uint8).reshape(height, width, 3)
    with Restorer(shipped_model(), backend=backend, device="cpu", threads=threads) as restorer:
        start = time.perf_counter()
        restored = restorer.restore(pixels)
        seconds = time.perf_counter() - start
    restored.tofile(result)
    print(json.dumps({"seconds": seconds}))


def turn(command: list[str | Path]) -> tuple[float, float, float]:
    """Seconds that the program says, its processor time in seconds, and its peak memory in MiB."""
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"{command[0]} ended with status {os.waitstatus_to_exitcode(status)}")
    return json.loads(told)["seconds"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(backend: str, threads: int, width: int, height: int, turns: int, folder: Path) -> None:
    """Prints a line for each program on one back end, and how far their pictures are from each other."""
    build = build_cpp(
        "bench",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DOpenVINO_DIR={openvino_cmake()}",
        "-DCLUSIR_BUILD_TESTS=ON",
        source=CPP,
        targets=("clusir-raw",),
    )
    source = folder / "in.rgb"
    rows, columns = -(-height // 500), -(-width // 500)
    np.tile(photo(500, 500), (rows, columns, 1))[:height, :width].tofile(source)
    results = {name: folder / f"{name}.rgb" for name in ("C++", "Python")}
    size = [str(width), str(height), source]
    raw = [build / "clusir-raw", shipped_model(), backend, ort_library(), str(threads), *size, results["C++"]]
    python = [sys.executable, __file__, "--once", backend, str(threads), *size, results["Python"]]
    taken: dict[str, list[tuple[float, float, float]]] = {"C++": [], "Python": []}
    for _ in range(turns):
        taken["C++"].append(turn(raw))
        taken["Python"].append(turn(python))
    middle = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in taken.items()}
    for name, (seconds, processor, _) in middle.items():
        least, peak = min(run[0] for run in taken[name]), max(run[2] for run in taken[name])
        print(
            f"{backend} {name}: {seconds:.2f} s (least {least:.2f}), {processor:.2f} s of processor time, "
            f"{peak:.0f} MiB at most"
        )
    ratios = [c[0] / p[0] for c, p in zip(taken["C++"], taken["Python"], strict=True)]
    ours, theirs = (np.fromfile(path, np.uint8).astype(np.int16) for path in results.values())
    away = np.abs(ours - theirs)
    print(
        f"{backend} C++ / Python: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"{np.count_nonzero(away)} of {away.size} samples differ, by {away.max()} at most",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        backend, threads, width, height, source, result = sys.argv[2:]
        restore_once(backend, int(threads), int(width), int(height), Path(source), Path(result))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--size", nargs=2, type=int, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for backend in asked.backend:
            measure(backend, asked.threads, *asked.size, asked.turns, Path(folder))


if __name__ == "__main__":
    main()
