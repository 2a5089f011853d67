"""A bundle: the graphs in every precision that was asked for, validated, with a report that says what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusir.degrade.recipe import KINDS
from clusir.errors import ClusirError, ExportError
from clusir.export.formats.extras import write_golden_cases, write_manifest, write_page
from clusir.export.pipeline import ExportConfig, GraphRecord, describe, staged, write_graphs
from clusir.export.validate.parity import (
    ParityRow,
    check_rows,
    compare,
    parity_cases,
    reference_outputs,
    uniform_routing,
)
from clusir.export.validate.tolerances import tolerance
from clusir.network.checkpoint import sha256, shipped
from clusir.network.model import ClusIR
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["ExportReport", "Validation", "export_bundle", "validate_files"]

Progress = Callable[[str], None]

# The tile and the router graph are the whole graph's halves: what they could get wrong on their own shows on a few
# kinds.
_SIDE_GRAPH_KINDS = ("noise", "haze", "none")


@dataclass(frozen=True)
class Validation:
    """What an export is checked on: backends by name, sizes (height, width in pixels, used by dynamic graphs; a
    static graph is checked at its own), batches. ``threads`` None lets each runtime choose."""

    backends: tuple[str, ...] = ("ort", "openvino")
    device: str = "cpu"
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 160), (272, 336))
    batches: tuple[int, ...] = (1, 3)
    threads: int | None = None


@dataclass
class ExportReport:
    """Everything that an export did and measured. ``markdown``: sections of further steps; ``keep``: names of files
    that are worth having although the export is refused."""

    graphs: list[GraphRecord] = field(default_factory=list)
    parity: list[ParityRow] = field(default_factory=list)
    precisions: dict[str, Any] = field(default_factory=dict)
    markdown: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "graphs": [
                {
                    "graph": g.graph,
                    "file": g.path.name,
                    "bytes": g.bytes,
                    "passes": [{"name": p.name, "modified": p.modified, "notes": list(p.notes)} for p in g.passes],
                }
                for g in self.graphs
            ],
            "parity": [row.to_dict() for row in self.parity],
            "precisions": self.precisions,
        }


def validate_files(
    model: ClusIR, paths: Sequence[Path], plan: Validation, progress: Progress = lambda _: None
) -> list[ParityRow]:
    """Parity of every graph on every backend against PyTorch: every size and batch of the plan, the whole graph
    on all degradations.

    Raises BackendError where a backend is not installed; whether the rows are within tolerance is for
    :func:`check_rows`. What the routers answer is checked on the whole graph's gates.
    """
    rows: list[ParityRow] = []
    for path in paths:
        with ExitStack() as stack:
            runners = [
                stack.enter_context(open_runner(path, backend, plan.device, plan.threads)) for backend in plan.backends
            ]
            progress(f"validating {path.name} on {', '.join(runner.name for runner in runners)}")
            spec = runners[0].spec
            side = spec.size.static_px
            bounds = tolerance(spec.precision, plan.device)
            routing = tile_routing(model, spec) if spec.graph == "tile" else None
            kinds = (*KINDS, "none") if spec.graph == "whole" else _SIDE_GRAPH_KINDS
            for case in parity_cases(((side, side),) if side else plan.sizes, plan.batches, kinds):
                feeds = {"image": case.image}
                if routing is not None:
                    feeds |= routing(feeds)
                expected = reference_outputs(model, feeds, spec.graph)
                rows += [compare(r, feeds, expected, case, bounds, path.name) for r in runners]
    return rows


def tile_routing(model: ClusIR, spec: ModelSpec) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Routing to feed a tile graph with: in fp32 every expert in turn, so that none can be missing; in lower
    precisions what the reference itself decides, since ranges were calibrated on pictures with the experts that
    belong to them."""
    if spec.precision == "fp32":
        return uniform_routing(spec, model)

    def own(feeds: Mapping[str, Array]) -> dict[str, Array]:
        decided = reference_outputs(model, feeds)
        return {name: decided[name] for name in ("posterior", "gate", "statistics")}

    return own


def export_bundle(
    model: ClusIR,
    destination: Path,
    stem: str,
    config: ExportConfig,
    plan: Validation,
    *,
    more: Sequence[Callable[[Path, str, ExportReport], None]] = (),
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Export, validate, then promote into ``destination``. ``more`` are further steps on the staged folder (other
    precisions, other formats), each given the folder, the stem and the report. When a step refuses, nothing is
    promoted but the report, ``report.json`` (``<stem>.report.json`` for a named file), with the reason."""
    report = ExportReport()
    name = "report.json" if stem == "model" else f"{stem}.report.json"
    with staged(destination, report.keep) as stage:
        report.keep.append(name)
        try:
            report.graphs = write_graphs(model, stage, stem, config, progress)
            report.parity = validate_files(model, [graph.path for graph in report.graphs], plan, progress)
            check_rows(report.parity)
            for step in more:
                step(stage, stem, report)
            if stem == "model":
                complete_bundle(model, stage, config, report)
        except ClusirError as error:
            write_report(stage / name, report, str(error))
            raise
        except Exception as error:
            write_report(stage / name, report, str(error))
            raise ExportError(f"{type(error).__name__}: {error}") from error
        write_report(stage / name, report)
    return report


def complete_bundle(model: ClusIR, stage: Path, config: ExportConfig, report: ExportReport) -> None:
    """Golden cases, the page, the model card and, last, the manifest."""
    spec = describe(model, config)
    write_golden_cases(model, stage, spec)
    drawings = sorted(stage.glob("*.svg"))
    write_page(stage / "report.html", f"{config.name}: export report", report.to_dict(), report.markdown, drawings)
    if config.checkpoint_sha256 == sha256(shipped()):
        shutil.copy(shipped().with_name("MODEL_CARD.md"), stage / "MODEL_CARD.md")
    write_manifest(stage, spec)


def write_report(path: Path, report: ExportReport, failure: str = "") -> None:
    """The report as JSON, with ``failure`` where the export was refused."""
    text = json.dumps({**report.to_dict(), "failure": failure}, indent=2, allow_nan=True)
    path.write_text(text.replace("Infinity", '"inf"') + "\n", encoding="utf-8")
