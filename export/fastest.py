"""``--router auto``: the forms that routed experts can take, run on this machine, the fastest that is right first."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from clusir.errors import ClusirError
from clusir.export.validate.compare import compare
from clusir.export.validate.tolerances import tolerance
from clusir.runtimes import open_runner
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.runners.base import Array

__all__ = ["ROUTERS", "Forms", "rank_forms", "routers_for"]

ROUTERS = ("dense", "merged", "conditional", "gathered")
"""The forms of routed experts, the most portable first."""

_RUNS = 5
_NEAR = 0.97  # of the time of the form before it: what is no faster than this is not worth a less portable graph


@dataclass(frozen=True)
class Forms:
    """``order``: the forms that are right, the best first; ``said``: what was measured, and why some are missing."""

    order: tuple[str, ...]
    said: str


def routers_for(batch: int, size: int, lower: Sequence[str]) -> tuple[str, ...]:
    """The forms that a file can have: of that ``batch`` and ``size`` (0: any), with ``lower`` precisions beside it."""
    fits = {"merged": bool(size), "conditional": not lower, "gathered": batch == 1 and not lower}
    return tuple(router for router in ROUTERS if fits.get(router, True))


def rank_forms(
    build: Callable[[str], onnx.ModelProto],
    routers: Sequence[str],
    pictures: Sequence[Mapping[str, Array]],
    backends: Sequence[str],
    runs: int = _RUNS,
) -> Forms:
    """Build each of ``routers`` (``dense`` among them) and let them take turns on ``pictures``, the inputs of a graph.

    ``build`` may raise a ClusirError, which leaves its form out, as does an answer other than the dense form's. The
    fastest is that of the least geometric mean over ``backends`` of its processor time on one thread, beside the dense
    form's: what else the machine does, and threads that wait, do not count.
    """
    left: dict[str, str] = {}
    ratios: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="clusir-") as folder:
        paths: dict[str, Path] = {}
        for router in routers:
            path = Path(folder) / f"{router}.onnx"
            try:
                onnx.save_model(build(router), str(path))
            except ClusirError as error:
                if router == "dense":
                    raise
                left[router] = str(error)
            else:
                paths[router] = path
        for backend in backends:
            ratios[backend] = _measure(paths, pictures, backend, runs, left)
    right = [router for router in paths if router not in left]
    score = {r: math.exp(sum(math.log(ratios[b][r]) for b in ratios) / len(ratios)) for r in right}
    order = sorted(right, key=lambda r: score[r])
    best = min((r for r in right if score[r] * _NEAR <= score[order[0]]), key=ROUTERS.index)
    order.sort(key=lambda r: r != best)
    shown = "; ".join(f"{b}: " + ", ".join(f"{r} {ratios[b][r]:.2f}x" for r in right) for b in ratios)
    why = "".join(f"; {router} left out ({reason})" for router, reason in left.items())
    return Forms(tuple(order), f"--router auto took {best} (time beside dense, {shown}{why})")


def _measure(
    paths: Mapping[str, Path],
    pictures: Sequence[Mapping[str, Array]],
    backend: str,
    runs: int,
    left: dict[str, str],
) -> dict[str, float]:
    """Time of each form beside the dense one; those that answer otherwise go to ``left``."""
    runners = {router: open_runner(path, backend, "cpu", 1) for router, path in paths.items()}
    try:
        wants = [runners["dense"].run(feeds) for feeds in pictures]
        for router, runner in runners.items():
            found = (compare(w, runner.run(f), tolerance("brought")) for w, f in zip(wants, pictures, strict=True))
            if not all(agreement.ok for agreement in found):
                left[router] = f"it answers otherwise than dense on {backend}"
        turns = {
            (router, number): (lambda runner=runner, feeds=feeds: runner.run(feeds))
            for router, runner in runners.items()
            for number, feeds in enumerate(pictures)
        }
        names = {f"{router} {number}": run for (router, number), run in turns.items()}
        times = measure_alternating(names, runs, pause_s=0.0, clock=time.process_time)
    finally:
        for runner in runners.values():
            runner.close()
    total = {r: sum(float(np.min(times[f"{r} {n}"])) for n in range(len(pictures))) for r in runners}
    least = 1e-9  # a clock that ticks every few milliseconds may not have moved
    return {router: max(seconds, least) / max(total["dense"], least) for router, seconds in total.items()}
