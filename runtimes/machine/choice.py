"""``--precision auto``: the fastest backend and precision of a model on this machine, among those that lose little.

What may be chosen: float32 on every backend that is installed and reads the files, and the precisions whose loss was
measured when the model was exported and is small (:mod:`clusir.runtimes.runners.losses`). How fast they are is measured
once for each machine, model and set of versions, in a process of its own, so that a runtime that crashes or takes much
memory harms nobody; the times are kept in the user's cache folder. Where nothing can be measured, float32 is taken.
Where it is known how much there is to restore, what opening takes counts, too: it may be more than some tiles do.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from clusir.atomic import whole_file
from clusir.errors import ClusirError
from clusir.names import BFLOAT16, MODULES, installed_backends
from clusir.runtimes.machine.allowed import cores
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.machine.fingerprint import cpu_features, cpu_model, gpus, package_versions
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.cache import cache_dir
from clusir.runtimes.runners.files import ModelFiles, find_model, variants
from clusir.runtimes.runners.losses import Loss, losses_path, read_losses
from clusir.runtimes.runners.metadata import read_metadata
from clusir.runtimes.runners.opening import open_runner, readers_of
from clusir.runtimes.runners.quiet import import_openvino
from clusir.spec import ModelSpec

__all__ = ["Candidate", "Choice", "Request", "Speeds", "choose", "fastest", "known_speeds", "measure_apart", "time_all"]

_FORMAT = 2
# What comes first loses least; something else must be faster by this much to be worth it.
_WORTH = 0.95
_SPENT_S, _MOST_ROUNDS = 3.0, 7
_TIMEOUT_S = 120.0
_VERSIONS = ("clusir", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")


@dataclass(frozen=True)
class Candidate:
    """One way to run a model; ``loss`` is None for float32, and for the one file that was named."""

    backend: str
    precision: str
    files: ModelFiles
    loss: Loss | None = None

    @property
    def label(self) -> str:
        return f"{self.precision} on {self.backend}"


@dataclass(frozen=True)
class Request:
    """What is timed: (label, graph file, backend, whether in bfloat16) of each candidate."""

    candidates: tuple[tuple[str, str, str, bool], ...]
    device: str
    threads: int | None


@dataclass(frozen=True)
class Speeds:
    """Milliseconds of one tile by candidate, and in one line why others have none; ``opening``: milliseconds in which a
    candidate's runtime is imported and its graph opened."""

    milliseconds: Mapping[str, float]
    failed: Mapping[str, str]
    opening: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What is taken, and ``why`` in one line."""

    backend: str
    precision: str
    files: ModelFiles
    why: str


Measure = Callable[[Request], Speeds]


def choose(
    model: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    measure: Measure | None = None,
    *,
    pixels: int | None = None,
) -> Choice:
    """The fastest way to run ``model`` here; the arguments are those of :class:`clusir.runtimes.Restorer`.
    ``pixels``: how many there are to restore; None: so many that opening does not count.

    Raises UsageError where the model is not there. What does not run is left out; where that is all, the choice is
    float32, and opening it says what is wrong.
    """
    files = find_model(model, None, backend)
    candidates, without = _candidates(files, backend)
    first = candidates[0]
    if len(candidates) == 1:
        taken = f"precision auto: {first.label}, the only one to choose; {without}"
        return Choice(first.backend, first.precision, first.files, taken)
    speeds = _speeds(files, candidates, Request(tuple(map(_line, candidates)), device, threads), measure)
    times = speeds.milliseconds
    tiles = None if pixels is None else _tiles(first.files, pixels)
    label = fastest([c.label for c in candidates], times, speeds.opening, tiles)
    if label is None:
        why = next(iter(speeds.failed.values()), "no reason given")
        text = f"precision auto: {first.precision}; nothing could be measured here ({why})"
        return Choice(backend, first.precision, first.files, text)
    best = next(c for c in candidates if c.label == label)
    others = ", ".join(f"{c.label} {times[c.label]:.1f}" for c in candidates if c.label in times and c != best)
    text = f"precision auto: {label}, {times[label]:.1f} ms a tile" + (f" ({others})" if others else "")
    if tiles is not None and label != fastest([c.label for c in candidates], times):
        some = "one tile" if round(tiles) == 1 else f"{tiles:.0f} tiles"
        text += f"; chosen for about {some}, with what opening takes"
    if best.loss is not None:
        text += f"; loses {best.loss.mean_db:.3f} dB in the mean, {best.loss.worst_db:.2f} dB on {best.loss.worst}"
    elif without:
        text += f"; {without}"
    return Choice(best.backend, best.precision, best.files, text)


def fastest(
    labels: Sequence[str],
    milliseconds: Mapping[str, float],
    opening: Mapping[str, float] | None = None,
    tiles: float | None = None,
) -> str | None:
    """The one to take of ``labels``, the least loss first; None where none has a time. With ``tiles`` by the time that
    opening and so many tiles take, else by that of one tile."""
    took = dict(milliseconds)
    if tiles is not None:
        took = {label: tiles * ms + (opening or {}).get(label, 0.0) for label, ms in milliseconds.items()}
    best: str | None = None
    for label in labels:
        if label in took and (best is None or took[label] < _WORTH * took[best]):
            best = label
    return best


def _tiles(files: ModelFiles, pixels: int) -> float | None:
    """About how many tiles ``pixels`` take; None where the graph does not say."""
    graph = files.tile or files.whole
    if graph.suffix != ".onnx":
        return None
    spec = ModelSpec.from_metadata(read_metadata(graph))
    return max(1.0, pixels / (spec.tile_px - 2 * spec.halo_px) ** 2)


def _candidates(files: ModelFiles, backend: str) -> tuple[list[Candidate], str]:
    """All that may be chosen, the least loss first, at least one; and why there is no more, in one sentence."""
    able = installed_backends(readers_of(files.whole)) if backend == "auto" else [backend]
    able = able or ["auto"]
    found = variants(files)
    base = next(iter(found))
    kept = files._unpacked  # the folder of a zip lives as long as what was chosen from it
    candidates = [Candidate(name, base, replace(found[base], _unpacked=kept)) for name in able]
    losses = read_losses(found)
    for precision in ("fp16", BFLOAT16, "int8"):
        there = found.get("fp32" if precision == BFLOAT16 else precision)
        for name in able:
            loss = losses.get((name, precision))
            if there is not None and loss is not None and loss.small:
                candidates.append(Candidate(name, precision, there, loss))
    if any(c.loss is not None for c in candidates):
        return candidates, ""
    if losses:
        least = min(losses.values(), key=lambda loss: loss.worst_db)
        return candidates, f"all other precisions lose too much, at least {least.worst_db:.2f} dB on {least.worst}"
    said = losses_path(found[base].whole).name
    return candidates, f"no {said} of these files says what other precisions lose"


def _line(candidate: Candidate) -> tuple[str, str, str, bool]:
    graph = candidate.files.tile or candidate.files.whole
    return candidate.label, str(graph), candidate.backend, candidate.precision == BFLOAT16


def _speeds(files: ModelFiles, candidates: Sequence[Candidate], request: Request, measure: Measure | None) -> Speeds:
    """Of the cache, or measured and put there."""
    key = _machine() | {"threads": request.threads, "device": request.device}
    key["gpus"] = gpus() if request.device != "cpu" and "onnxruntime-gpu" in key["versions"] else []
    try:
        key["files"] = {c.label: c.files.sha256() for c in candidates}
    except OSError as error:
        return Speeds({}, {"": f"{files.whole} cannot be read: {error.strerror or error}"})
    folder = cache_dir("speed")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".json"
    if folder is not None and (known := _read(folder / name)) is not None and known["key"] == key:
        return Speeds(known["milliseconds"], known["failed"], known["opening"])
    speeds = (measure or measure_apart)(request)
    if folder is not None and speeds.milliseconds:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        data = {"format": _FORMAT, "model": str(files.whole), "date": date, "key": key, **asdict(speeds)}
        with contextlib.suppress(OSError), whole_file(folder / name) as stream:
            stream.write(json.dumps(data, indent=1).encode())
    return speeds


def _machine() -> dict[str, Any]:
    """What a speed hangs on besides the model."""
    return {
        "cpu": cpu_model(), "features": list(cpu_features()), "cores": cores(),
        "versions": package_versions(_VERSIONS),
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    """A file of the cache; None where it is none, or says what cannot be."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        times, failed, opening = data["milliseconds"], data["failed"], data["opening"]
        good = data["format"] == _FORMAT and isinstance(data["key"], dict) and isinstance(failed, dict) and len(times)
        good = good and all(math.isfinite(ms) and ms > 0 for ms in (*times.values(), *opening.values()))
        return {**data, "model": str(data["model"]), "date": str(data["date"])} if good else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def known_speeds() -> list[dict[str, Any]]:
    """What was measured on this machine with these versions, by model: ``model``, ``date``, ``milliseconds`` (of one
    tile, by candidate, the least loss first) and ``fastest``."""
    folder = cache_dir("speed")
    machine = _machine()
    found = []
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        data = _read(path)
        if data is None or any(data["key"].get(name) != value for name, value in machine.items()):
            continue
        times = data["milliseconds"]
        row = {"model": data["model"], "date": data["date"], "threads": data["key"].get("threads")}
        found.append(row | {"milliseconds": times, "fastest": fastest(list(times), times)})
    return found


def measure_apart(request: Request, timeout_s: float = _TIMEOUT_S) -> Speeds:
    """:func:`time_all` in a process of its own; a process that fails or hangs is a reason, not an error."""
    command = [sys.executable, "-P", "-m", "clusir.runtimes.machine.choice", json.dumps(asdict(request))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        times = {str(label): float(ms) for label, ms in answer["milliseconds"].items()}
        return Speeds(times, dict(answer["failed"]), {str(k): float(ms) for k, ms in answer["opening"].items()})
    except subprocess.TimeoutExpired:
        return Speeds({}, {"": f"it took more than {timeout_s:.0f} s"})
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return Speeds({}, {"": f"the process that measures ended without an answer: {type(error).__name__}"})


def time_all(request: Request, timer: Callable[..., dict[str, list[float]]] = measure_alternating) -> Speeds:
    """The fastest of some runs of each candidate on one tile, taking turns, in about three seconds. ``timer`` does what
    :func:`clusir.runtimes.machine.alternating.measure_alternating` does."""
    failed: dict[str, str] = {}
    opening: dict[str, float] = {}
    imports: dict[str, float] = {}
    with ExitStack() as stack:
        steps: dict[str, Callable[[], Any]] = {}
        for label, path, backend, bf16 in request.candidates:
            try:
                imports.setdefault(backend, _import_s(backend))
                runner = stack.enter_context(open_runner(path, backend, request.device, request.threads, bf16=bf16))
                step = partial(runner.run, _feeds(runner.spec))
                step()
                begin = time.perf_counter()  # what a runtime keeps of a graph is there from the first time
                open_runner(path, backend, request.device, request.threads, bf16=bf16).close()
                opening[label] = 1000 * (imports[backend] + time.perf_counter() - begin)
            except ClusirError as error:
                failed[label] = str(error)
                continue
            steps[label] = step
        if not steps:
            return Speeds({}, failed)
        once = timer(steps, 1, 0)
        a_round = sum(map(min, once.values()))
        rounds = max(1, min(_MOST_ROUNDS, int(_SPENT_S / max(a_round, 1e-3))))
        more = timer(steps, rounds, 0)
        return Speeds({label: 1000 * min(once[label] + more[label]) for label in steps}, failed, opening)


def _import_s(backend: str) -> float:
    """Seconds in which a backend's module is imported; 0 where it is not there, which opening a graph says."""
    begin = time.perf_counter()
    try:
        import_openvino() if backend == "openvino" else import_module(MODULES[backend])
    except (ImportError, KeyError):
        return 0.0
    return time.perf_counter() - begin


def _feeds(spec: ModelSpec) -> dict[str, Array]:
    """Inputs of a whole or tile graph: noise, an even posterior, the first experts."""
    image = np.random.default_rng(0).uniform(*spec.value_range, (1, spec.planes, spec.tile_px, spec.tile_px))
    feeds = {spec.input_name: image.astype(np.float32)}
    if spec.graph == "tile":
        posterior = [np.full(count, 1 / count, np.float32) for count in spec.clusters]
        gate = [(np.arange(count) < spec.top_k).astype(np.float32) / np.float32(spec.top_k) for count in spec.experts]
        feeds |= {"posterior": np.concatenate(posterior)[None], "gate": np.concatenate(gate)[None]}
        if spec.statistics:
            feeds["statistics"] = np.full((1, spec.statistics), 0.5, np.float32)
    return feeds


def _child(text: str) -> None:
    data = json.loads(text)
    lines = tuple((str(a), str(b), str(c), bool(d)) for a, b, c, d in data["candidates"])
    print(json.dumps(asdict(time_all(Request(lines, data["device"], data["threads"])))))


if __name__ == "__main__":
    _child(sys.argv[1])
