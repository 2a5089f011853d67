"""What ``clusir-export`` does once its options are read; imports torch and the exporters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from clusir.cli._common import console as stdout
from clusir.errors import BudgetError, UsageError
from clusir.export.formats.bundle import ExportReport, Validation, export_bundle, validate_files
from clusir.export.pipeline import ExportConfig
from clusir.export.validate.parity import ParityRow, check_rows
from clusir.network import checkpoint as checkpoints
from clusir.network.model import ClusIR
from clusir.runtimes.runners.metadata import read_metadata

__all__ = ["ExportRequest", "parity_table", "run", "run_module"]

_BRIEF = 160  # characters of a pass's notes that the terminal shows

Progress = Callable[[str], None]
Step = Callable[[Path, str, ExportReport], None]


@dataclass(frozen=True)
class ExportRequest:
    """The options of one ``clusir-export`` call, named as on its command line."""

    folder: Path
    stem: str
    openvino: bool
    ort_mobile: bool
    checkpoint: str | None
    seed: int
    precision: tuple[str, ...]
    router: str
    dft: str
    dynamic: bool
    tile_px: int
    halo_px: int
    backends: tuple[str, ...]
    device: str
    engine: str
    calibration: Path | None
    manifest: Path | None
    max_drop: float | None
    time_limit: float | None
    input_shape: str
    as_json: bool


def run(request: ExportRequest) -> None:
    """Export, validate, promote, and print what was measured."""
    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"{request.folder} is a file; name a folder, or a file ending in .onnx")
    model, digest = checkpoints.resolve(request.checkpoint, request.seed)
    config = ExportConfig(
        router=request.router,
        dft=request.dft,  # type: ignore[arg-type]  # click has checked it
        dynamic=request.dynamic,
        tile_px=request.tile_px,
        halo_px=request.halo_px,
        name=Path(request.checkpoint or "tiny").stem.replace("random:", "untrained-"),
        checkpoint_sha256=digest,
        cluster_labels=checkpoints.cluster_labels(request.checkpoint),
    )
    plan = Validation(backends=request.backends, device=request.device)
    with Console(stderr=True).status("exporting") as status:
        steps = further_steps(request, plan, model, status.update)
        report = export_bundle(model, request.folder, request.stem, config, plan, more=steps, progress=status.update)
    if request.as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    console = stdout()
    print_passes(console, report)
    console.print(parity_table(report.parity))
    for text in report.markdown:
        console.print(Markdown(text))
    for path in sorted(request.folder.glob(f"{request.stem}*")):
        console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)


def further_steps(request: ExportRequest, plan: Validation, model: ClusIR, progress: Progress) -> list[Step]:
    """What follows the fp32 graphs: other precisions with their parity, then other formats of all that is there."""
    steps: list[Step] = []
    lower = tuple(p for p in request.precision if p != "fp32")
    if lower:
        steps.append(
            lambda stage, stem, report: add_precisions(request, lower, plan, model, progress, stage, stem, report)
        )
    if request.openvino:
        steps.append(lambda stage, stem, report: add_openvino(stage, stem))
    if request.ort_mobile:
        steps.append(lambda stage, stem, report: add_ort_mobile(stage, stem, report))
    return steps


def add_precisions(
    request: ExportRequest,
    lower: tuple[str, ...],
    plan: Validation,
    model: ClusIR,
    progress: Progress,
    stage: Path,
    stem: str,
    report: ExportReport,
) -> None:
    """fp16 and int8 files beside the fp32 ones, their quality against ground truth, and their parity."""
    from clusir.export.precision.frontier import BudgetConfig
    from clusir.export.precision.run import PrecisionConfig, make_precisions

    config = PrecisionConfig(
        precisions=lower,
        engine=request.engine,
        calibration=request.calibration,
        manifest=request.manifest,
        seed=request.seed,
        budget=BudgetConfig(max_drop_db=request.max_drop, time_limit_s=request.time_limit),
    )
    state = request.folder / f".{stem}.quantisation"
    try:
        made = make_precisions(stage, stem, config, state=state, progress=progress)
    except BudgetError as error:
        report.keep += [path.name for path in sorted(stage.glob(f"{stem}.*")) if ".int8" in path.name]
        best = getattr(error, "report", None)
        if best is not None:
            report.precisions = best.to_json()
        raise
    report.precisions = made.to_json()
    report.markdown.append(made.to_markdown())
    paths = [path for path in sorted(stage.glob(f"{stem}.*.onnx")) if path.name.split(".")[1] in lower]
    rows = validate_files(model, paths, plan, progress)
    report.parity += rows
    check_rows(rows)


def add_openvino(stage: Path, stem: str) -> None:
    """Every ONNX file of the stage as OpenVINO IR in ``openvino/``, weights in the precision they have."""
    import openvino

    (stage / "openvino").mkdir()
    for path in sorted(stage.glob(f"{stem}*.onnx")):
        model = openvino.convert_model(path)
        spec = read_metadata(path)
        for key, value in spec.items():
            if key.startswith("clusir."):
                model.set_rt_info(value, ["clusir", key.removeprefix("clusir.")])
        openvino.save_model(model, stage / "openvino" / f"{path.stem}.xml", compress_to_fp16=False)


def add_ort_mobile(stage: Path, stem: str, report: ExportReport) -> None:
    """Every ONNX file of the stage as ``.ort`` with its operators and a usability report, in the folder ``mobile``."""
    from clusir.export.formats.ort_mobile import write_ort_mobile

    wholes = [p for p in sorted(stage.glob(f"{stem}*.onnx")) if not p.stem.endswith((".tile", ".router"))]
    report.markdown.append(write_ort_mobile(wholes, stage / "mobile").to_markdown())


def run_module(
    request: ExportRequest, module: str, *, output: str | None = None, batch: int | None = None, size: int | None = None
) -> None:
    """Bring your own model: one ONNX file of somebody else's network."""
    from clusir.export.module import ModuleOptions, export_module

    given = click.get_current_context().get_parameter_source
    default = click.core.ParameterSource.DEFAULT
    options = ModuleOptions(
        dft=request.dft,  # type: ignore[arg-type]  # click has checked it
        router=request.router,
        output=output,
        batch=batch or 0,
        size=size or 0,
        tile=None if given("tile_px") == default else request.tile_px,
        halo=None if given("halo_px") == default else request.halo_px,
        backends=request.backends,
    )
    out = request.folder / f"{request.stem}.onnx"
    with Console(stderr=True).status(f"exporting {module}") as status:
        made = export_module(
            module,
            request.input_shape,
            out,
            options=options,
            progress=lambda step: status.update(f"exporting {module}: {step}"),
        )
    if request.as_json:
        click.echo(json.dumps(asdict(made), default=str))
        return
    console = stdout()
    for note in made.notes:
        console.print(f"- {note}", highlight=False)
    for agreement in made.agreements:
        console.print(str(agreement), highlight=False)
    console.print(f"{made.path}  {made.path.stat().st_size / 1e6:.2f} MB", highlight=False)
    for note in made.notes:
        if note.startswith("WARNING"):
            click.echo(note, err=True)


def print_passes(console: Console, report: ExportReport) -> None:
    """The passes that ran on the whole graph, one line each."""
    table = Table("pass", "changed", "notes", title=f"passes ({report.graphs[0].graph} graph)", title_justify="left")
    for record in report.graphs[0].passes:
        notes = "; ".join(record.notes)
        brief = notes if len(notes) <= _BRIEF else notes[:_BRIEF].rsplit(" ", 1)[0] + " ... (all of it in the report)"
        table.add_row(record.name, "yes" if record.modified else "no", brief)
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
