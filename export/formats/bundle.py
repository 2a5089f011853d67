"""A bundle: the graphs in every precision that was asked for, validated, with a report that says what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clusir import plain_json
from clusir.errors import ClusirError, ExportError
from clusir.export.formats.extras import write_golden_cases, write_manifest
from clusir.export.formats.page import as_markdown, write_page
from clusir.export.formats.weights import share_weights
from clusir.export.ownership import refuse_foreign, retire
from clusir.export.pipeline import ExportConfig, GraphRecord, describe, write_graphs
from clusir.export.staging import staged
from clusir.export.trace.forms import GRAPHS
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import ParityRow, check_rows
from clusir.network.checkpoint import sha256, shipped
from clusir.network.model import ClusIR
from clusir.runtimes.runners.external import DATA_SUFFIX

__all__ = ["Destination", "ExportReport", "Step", "export_bundle"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Destination:
    """Where files go: ``<stem>.onnx`` and the others named after it into ``folder``; a ``bundle`` has a manifest,
    golden cases and a page beside them. ``shared``: the graphs of a precision keep their weights in one file
    (:mod:`.weights`) instead of each in itself."""

    folder: Path
    stem: str = "model"
    bundle: bool = True
    shared: bool = False

    @property
    def report(self) -> str:
        """The name of the report."""
        return "report.json" if self.bundle else f"{self.stem}.report.json"

    def known_names(self, graphs: Sequence[str]) -> list[str]:
        """What is written in any case, to be refused before an hour of work where it is somebody else's."""
        names = [f"{self.stem}{GRAPHS[graph].suffix}" for graph in graphs]
        names += [f"{self.stem}.onnx{DATA_SUFFIX}"] if self.shared else []
        return [*names, self.report, *(("manifest.json", "report.html") if self.bundle else ())]


@dataclass
class ExportReport:
    """Everything that an export did and measured. ``variants``: graphs in lower precisions; ``data``: files of weights
    that graphs share, and their bytes; ``markdown``: sections of further steps; ``keep``: names of files that are worth
    having although the export is refused, each of them compared; ``files``: what was put in place, relative to the
    destination; ``retired``: see :func:`ownership.retire`."""

    graphs: list[GraphRecord] = field(default_factory=list)
    variants: list[Path] = field(default_factory=list)
    data: dict[Path, int] = field(default_factory=dict)
    parity: list[ParityRow] = field(default_factory=list)
    precisions: dict[str, Any] = field(default_factory=dict)
    markdown: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    @property
    def onnx(self) -> list[Path]:
        """Every ONNX file that was made, where it was made."""
        return [*(graph.path for graph in self.graphs), *self.variants]

    def share(self, graphs: Sequence[Path]) -> None:
        """Let ``graphs``, of one precision, keep their weights in one file, named after the first."""
        data = share_weights(graphs)
        if data is not None:
            self.data[data] = data.stat().st_size
        self.graphs = [replace(graph, bytes=graph.path.stat().st_size) for graph in self.graphs]

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
            "weights": [{"file": path.name, "bytes": size} for path, size in self.data.items()],
            "parity": [row.to_dict() for row in self.parity],
            "precisions": self.precisions,
            "files": self.files,
        }


Step = Callable[[Path, str, ExportReport], None]


def export_bundle(
    model: ClusIR,
    to: Destination,
    config: ExportConfig,
    plan: ParityPlan,
    *,
    more: Sequence[Step] = (),
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Export, validate, then put everything in place. ``more`` are further steps on the staged folder (other
    precisions, other formats), each given the folder, the stem and the report; each compares what it writes.

    When a step refuses, nothing is put in place but the report, with the reason, and what the step says is worth
    keeping. Raises UsageError where a file is in the way that no export has written.
    """
    report = ExportReport()
    refuse_foreign(to.folder, to.known_names(config.graphs), to.stem)
    before = to.folder / f"{to.stem}.onnx"
    replaced = before.read_bytes() if before.is_file() else None

    def check(names: list[str]) -> None:
        refuse_foreign(to.folder, names, to.stem)

    with staged(to.folder, report.keep, check) as stage:
        report.keep.append(to.report)
        try:
            report.graphs = write_graphs(model, stage, to.stem, config, progress)
            paths = [graph.path for graph in report.graphs]
            if to.shared:
                report.share(paths)
            report.parity = validate_files(model, paths, plan, progress)
            check_rows(report.parity, [path.name for path in paths])
            for step in more:
                step(stage, to.stem, report)
            if to.bundle:
                write_golden_cases(model, stage, describe(model, config))
        except ClusirError as error:
            write_report(stage / to.report, report, str(error))
            raise
        except Exception as error:
            write_report(stage / to.report, report, str(error))
            raise ExportError(f"{type(error).__name__}: {error}") from error
        complete(model, stage, to, config, report)
    report.retired = retire(to.folder, to.stem, report.files, replaced)
    return report


def complete(model: ClusIR, stage: Path, to: Destination, config: ExportConfig, report: ExportReport) -> None:
    """What is written last: the page and the model card of a bundle, the report, and the manifest, which names all."""
    if to.bundle:
        drawings = sorted(stage.glob("*.svg"))
        title = f"{config.name}: export report"
        write_page(stage / "report.html", title, as_markdown(title, report.to_dict(), report.markdown), drawings)
        if config.checkpoint_sha256 == sha256(shipped()):
            shutil.copy(shipped().with_name("MODEL_CARD.md"), stage / "MODEL_CARD.md")
    files = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith(".")} | {to.report}
    report.files = sorted(files | ({"manifest.json"} if to.bundle else set()))
    write_report(stage / to.report, report)
    if to.bundle:
        write_manifest(stage, describe(model, config), sorted(files))


def write_report(path: Path, report: ExportReport, failure: str = "") -> None:
    """The report as JSON, with ``failure`` where the export was refused."""
    path.write_text(plain_json.dumps({**report.to_dict(), "failure": failure}, indent=2) + "\n", encoding="utf-8")
