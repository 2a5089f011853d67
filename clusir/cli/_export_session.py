"""What ``clusir-export`` does once its options are read; imports torch and the exporters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from clusir import checkpoint as checkpoints
from clusir.errors import UsageError
from clusir.export.bundle import ExportReport, Validation, export_bundle
from clusir.export.pipeline import ExportConfig
from clusir.export.validate import ParityRow

__all__ = ["ExportRequest", "parity_table", "run"]


@dataclass(frozen=True)
class ExportRequest:
    """The options of one ``clusir-export`` call, named as on its command line."""

    folder: Path
    stem: str
    checkpoint: str | None
    precision: tuple[str, ...]
    router: str
    dft: str
    dynamic: bool
    tile_px: int
    halo_px: int
    backends: tuple[str, ...]
    device: str
    seed: int
    as_json: bool


def run(request: ExportRequest) -> None:
    """Export, validate, promote, and print what was measured."""
    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"{request.folder} is a file; name a folder, or a file ending in .onnx")
    console = Console(stderr=True)
    model, digest = checkpoints.resolve(request.checkpoint, request.seed)
    name = request.checkpoint or "tiny"
    config = ExportConfig(
        router=request.router,
        dft=request.dft,  # type: ignore[arg-type]  # click has checked it
        dynamic=request.dynamic,
        tile_px=request.tile_px,
        halo_px=request.halo_px,
        name=Path(name).stem,
        checkpoint_sha256=digest,
        cluster_labels=checkpoints.cluster_labels(request.checkpoint),
    )
    plan = Validation(backends=request.backends, device=request.device)
    with console.status("exporting") as status:
        report = export_bundle(model, request.folder, request.stem, config, plan, progress=status.update)
    if request.as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    console = Console()
    print_passes(console, report)
    console.print(parity_table(report.parity))
    for graph in report.graphs:
        console.print(f"{request.folder / graph.path.name}  {graph.bytes / 1e6:.2f} MB", highlight=False)


def print_passes(console: Console, report: ExportReport) -> None:
    """The passes that ran on the whole graph, one line each."""
    table = Table("pass", "changed", "notes", title=f"passes ({report.graphs[0].graph} graph)", title_justify="left")
    for record in report.graphs[0].passes:
        table.add_row(record.name, "yes" if record.modified else "no", "; ".join(record.notes))
    console.print(table)


def parity_table(rows: Sequence[ParityRow]) -> Table:
    """Parity in one line per artefact, runner, size and batch: the worst over the degradations."""
    table = Table(title="parity with PyTorch (worst over degradations)", title_justify="left")
    for heading in ("artefact", "runner", "input", "cases", "max abs", "dB", "flips", "ok"):
        table.add_column(heading, no_wrap=True)
    groups: dict[tuple[str, str, str, int], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.artefact, row.runner, row.size, row.batch), []).append(row)
    for (artefact, runner, size, batch), group in groups.items():
        table.add_row(
            artefact, runner, f"{batch}x{size}", str(len(group)),
            f"{max(r.max_abs for r in group):.1e}", f"{min(r.psnr_db for r in group):.1f}",
            str(sum(r.flips for r in group)), "yes" if all(r.ok for r in group) else "NO",
        )  # fmt: skip
    return table
