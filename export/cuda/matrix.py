"""The CUDA validation matrix: export, check and time every configuration on one card, beside PyTorch on the same tiles.

One command does it all and may be stopped at any time: exported files and finished rows in the folder are kept, so the
same command goes on. Where a row ends the process, the next run notes that and goes past it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clusir.errors import ClusirError
from clusir.export.cuda.engines import OrtEngine, TorchEngine, card_memory_mib, exact_kernels, require
from clusir.export.cuda.files import make_file
from clusir.export.cuda.plan import FULL, QUICK, MatrixPlan, MatrixRow
from clusir.export.cuda.report import MatrixReport
from clusir.export.pipeline import ExportConfig, describe
from clusir.export.validate.parity import ParityCase, parity_cases, reference_outputs, run_case
from clusir.export.validate.tolerances import tolerance
from clusir.network import checkpoint as checkpoints
from clusir.network.model import ClusIR
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.machine.fingerprint import fingerprint
from clusir.runtimes.machine.measure import Percentiles
from clusir.runtimes.runners.base import Array

__all__ = ["run_matrix"]

Engine = OrtEngine | TorchEngine
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Group:
    """Rows that take turns: one network, precision and batch, on the same tiles."""

    model: str
    precision: str
    batch: int


@dataclass(frozen=True)
class _Place:
    """What is run, where its files go, on which device, and how often each row is timed."""

    plan: MatrixPlan
    folder: Path
    device: str
    runs: int


def run_matrix(
    folder: str | Path,
    device: str = "cuda",
    *,
    quick: bool = False,
    runs: int = 20,
    plan: MatrixPlan | None = None,
    progress: Progress = lambda text: None,
) -> MatrixReport:
    """Run ``plan`` (None: the full one, or with ``quick`` the smallest) and write ``cuda.md`` and ``cuda.json``.

    ``runs`` timed calls per row. Raises BackendError, with what to install, where ``device`` is not there. The report's
    ``passed`` says whether every row that counts is within its tolerance and off the CPU.
    """
    require(device)
    plan = plan or (QUICK if quick else FULL)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = _Log(folder / "rows.jsonl")
    for name in plan.models:
        model, digest = checkpoints.resolve(None if name == "tiny" else f"random:{name}")
        for precision in plan.precisions:
            for batch in plan.batches:
                group = _Group(name, precision, batch)
                progress(f"{name} {precision} batch {batch}")
                with exact_kernels():
                    _run_group(group, model, digest, _Place(plan, folder, device, runs), log, progress)
    report = MatrixReport(
        fingerprint(), device, plan, runs, [r for r in log.rows.values() if _belongs(r, plan, device)]
    )
    report.write(folder)
    return report


def _belongs(row: MatrixRow, plan: MatrixPlan, device: str) -> bool:
    same = (row.device, row.tile_px) == (device, plan.tile_px)
    return same and row.model in plan.models and row.precision in plan.precisions and row.batch in plan.batches


def _rows(group: _Group, plan: MatrixPlan, device: str) -> Iterator[MatrixRow]:
    for shape in plan.shapes:
        for router in plan.routers:
            row = MatrixRow(group.model, "ort", router, shape, group.precision, group.batch)
            yield row
            # A branch is decided on the host, so a graph with branches cannot be replayed as one CUDA graph.
            if device == "cuda" and shape == "static" and router == "dense":
                yield replace(row, engine="ort + CUDA graph")
        if plan.dft_operator and group.precision == "fp32":
            yield MatrixRow(group.model, "ort", "dense, DFT operator", shape, group.precision, group.batch)
    for mode in plan.torch_modes if group.precision != "int8" else ():
        yield MatrixRow(group.model, f"torch {mode}", "sparse", "dynamic", group.precision, group.batch)


def _run_group(
    group: _Group,
    model: ClusIR,
    digest: str,
    here: _Place,
    log: _Log,
    progress: Progress,
) -> None:
    """Open every engine of the group, check each against the reference, then time them in turns."""
    plan, folder, device, runs = here.plan, here.folder, here.device, here.runs
    rows = [replace(row, checkpoint=digest, device=device, tile_px=plan.tile_px) for row in _rows(group, plan, device)]
    rows = [row for row in rows if log.lacks(row)]
    if not rows:
        return
    cases = list(parity_cases([(plan.tile_px, plan.tile_px)], [group.batch], plan.kinds))
    expected = [reference_outputs(model, {"image": case.image}) for case in cases]
    opened: list[tuple[MatrixRow, Engine]] = []
    try:
        for row in rows:
            log.start(row)
            progress(f"  {row.engine}, {row.form}, {row.shape}")
            before = card_memory_mib()
            try:
                engine = _open(row, model, digest, plan, folder, device, cases[0].image)
                opened.append((row, engine))
                _check(row, engine, cases, expected, device)
            except Exception as error:  # one configuration that a runtime refuses is a row of the report
                row.error = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
                log.finish(row)
                continue
            after = card_memory_mib()
            row.memory_mib = None if before is None or after is None else after - before
        timed = [(row, engine) for row, engine in opened if not row.error]
        _time(timed, plan.tile_px, runs)
        for row, _ in timed:
            log.finish(row)
    finally:
        for _, engine in opened:
            engine.close()


def _open(
    row: MatrixRow, model: ClusIR, digest: str, plan: MatrixPlan, folder: Path, device: str, image: Array
) -> Engine:
    config = ExportConfig(
        router=row.form if row.form == "conditional" else "dense",
        dft="op" if row.reference_only else "auto",
        dynamic=row.shape == "dynamic",
        tile_px=plan.tile_px,
        halo_px=min(16, plan.tile_px // 8),
        graphs=("whole",),
        name=row.model,
        checkpoint_sha256=digest,
    )
    spec = describe(model, replace(config, dft="auto"))
    if row.engine.startswith("torch"):
        # Compilation and memory layout change a network in place: each mode gets a copy.
        return TorchEngine(
            copy.deepcopy(model), row.engine.removeprefix("torch "), row.precision, device, {"image": image}, spec
        )
    path = make_file(model, config, row.precision, folder / "models")
    return OrtEngine(path, device, {"image": image}, spec, cuda_graph="graph" in row.engine)


def _check(
    row: MatrixRow, engine: Engine, cases: list[ParityCase], expected: list[dict[str, Array]], device: str
) -> None:
    """Parity over all cases, and where the nodes ran."""
    bounds = tolerance(row.precision, device)
    found = [
        run_case(engine, {"image": case.image}, reference, case, bounds, row.key)
        for case, reference in zip(cases, expected, strict=True)
    ]
    row.max_abs = max(f.max_abs for f in found)
    row.psnr_db = min(f.psnr_db for f in found)
    row.flips = sum(f.flips for f in found)
    row.within = row.ok = bool(found) and all(f.ok for f in found)
    if isinstance(engine, OrtEngine):
        report = engine.nodes({"image": cases[0].image})
        row.nodes, row.tensor_on_cpu, row.copies = report.nodes, report.tensor_on_cpu, report.copies
        if device == "cpu":
            row.tensor_on_cpu = {}  # where everything belongs on the CPU, nothing fell back to it
        row.ok = row.ok and not row.tensor_on_cpu


def _time(timed: list[tuple[MatrixRow, Engine]], tile_px: int, runs: int) -> None:
    times = measure_alternating({row.key: engine for row, engine in timed}, runs, warmup=3)
    for row, _ in timed:
        measured = Percentiles.of(times[row.key])
        row.p50_ms, row.p95_ms = measured.p50, measured.p95
        row.megapixels_per_s = row.batch * tile_px**2 / 1e3 / measured.p50


class _Log:
    """Finished rows, one JSON line each; a row that was started and never finished ended its process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, MatrixRow] = {}
        started: dict[str, MatrixRow] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                row = MatrixRow(**entry["row"])
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a kill
            (self.rows if entry["done"] else started)[row.key] = row
            if not entry["done"]:
                last = row.key
        # Several rows of one group are open at a time: only the last one that was opened can have ended the process.
        if started and last not in self.rows:
            self.finish(replace(started[last], error="the process ended in this row"))

    def lacks(self, row: MatrixRow) -> bool:
        """Whether ``row`` has not been finished with these weights; what other weights gave is forgotten."""
        known = self.rows.get(row.key)
        return known is None or known.checkpoint != row.checkpoint

    def start(self, row: MatrixRow) -> None:
        self._append(row, done=False)

    def finish(self, row: MatrixRow) -> None:
        self.rows[row.key] = row
        self._append(row, done=True)

    def _append(self, row: MatrixRow, *, done: bool) -> None:
        entry: dict[str, Any] = {"done": done, "row": row.to_dict()}
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry, default=_number) + "\n")


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ClusirError(f"{type(value).__name__} is no JSON")
