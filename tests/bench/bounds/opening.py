"""How long ONNX Runtime takes to open the shipped graphs: as they are in the wheel, and as they are kept optimised.

    python -m tests.bench.bounds.opening [--runs 7]

Processor time on one thread, in turns, with ``CLUSIR_CACHE=off`` and with a folder that an earlier turn has filled.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.opening import open_runner


def opened(path: Path, cache: str) -> None:
    os.environ["CLUSIR_CACHE"] = cache
    open_runner(path, "ort", "cpu", 1).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    files = find_model()
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[], object]] = {}
        for path in filter(None, (files.whole, files.tile, files.router)):
            for how, cache in (("as it is", "off"), ("kept", folder)):
                steps[f"{path.name}, {how}"] = partial(opened, path, cache)
        for name, seconds in measure_alternating(steps, asked.runs, clock=time.process_time).items():
            print(f"{name}: {1e3 * min(seconds):.0f} ms")


if __name__ == "__main__":
    main()
