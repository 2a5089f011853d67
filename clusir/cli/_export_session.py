"""What ``clusir-export`` does once its options are read; imports torch and the exporters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from clusir import plain_json
from clusir.cli._common import console as stdout
from clusir.cli._common import echo_warning
from clusir.cli._precision import placed_json, precision_config, print_placed, refuse_idle_options
from clusir.errors import WARNING_EXIT_CODE, BudgetError, UsageError
from clusir.export.formats.bundle import Destination, ExportReport, Step, export_bundle
from clusir.export.pipeline import ExportConfig, fastest_router
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import ParityRow, check_rows, remembered_answers
from clusir.names import PRECISIONS
from clusir.network import checkpoint as checkpoints
from clusir.network.model import ClusIR
from clusir.runtimes.runners.external import DATA_SUFFIX

__all__ = ["ExportRequest", "parity_table", "run", "run_module"]

_BRIEF = 160  # characters of a pass's notes that the terminal shows

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """The options of one ``clusir-export`` call, named as on its command line. ``bundle``: a folder was named, not a
    file; ``given``: the options that the user wrote out."""

    folder: Path
    stem: str
    bundle: bool
    given: frozenset[str]
    weights: str | None
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
    check_passes: bool
    as_json: bool
    fp16_islands: str = "auto"

    @property
    def to(self) -> Destination:
        shared = self.bundle if self.weights is None else self.weights == "shared"
        return Destination(self.folder, self.stem, self.bundle, shared)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The backends to validate on: of those that are the default, the ones that the other options leave.

        Raises UsageError where the user named OpenVINO beside an option that it cannot serve.
        """
        reason = "--device cuda" if self.device == "cuda" else "--dft op" if self.dft == "op" else ""
        if not reason or "openvino" not in self.backends:
            return self.backends
        if "backends" in self.given:
            raise UsageError(f"{reason} with --backends openvino: OpenVINO cannot serve it; use --backends ort")
        return tuple(backend for backend in self.backends if backend != "openvino")


def run(request: ExportRequest) -> None:
    """Export, validate, put in place, and print what was measured."""
    refuse_idle_options(vars(request), request.given)
    if request.folder.exists() and not request.folder.is_dir():
        raise UsageError(f"{request.folder} is a file; name a folder, or a file ending in .onnx")
    model, digest = checkpoints.resolve(request.checkpoint, request.seed)
    config = ExportConfig(
        router="dense" if request.router == "auto" else request.router,
        dft=request.dft,  # type: ignore[arg-type]  # click has checked it
        dynamic=request.dynamic,
        tile_px=request.tile_px,
        halo_px=request.halo_px,
        name=Path(request.checkpoint or "tiny").stem.replace("random:", "untrained-"),
        checkpoint_sha256=digest,
        cluster_labels=checkpoints.cluster_labels(request.checkpoint),
        check_passes=request.check_passes,
    )
    plan = ParityPlan(backends=request.runtimes, device=request.device)
    with Console(stderr=True).status("exporting") as status, remembered_answers():
        said = ""
        if request.router == "auto":
            lower = tuple(p for p in request.precision if p in PRECISIONS and p != "fp32")
            forms = fastest_router(model, config, request.runtimes, lower, status.update)
            config, said = replace(config, router=forms.order[0]), forms.said
        steps = further_steps(request, plan, model, status.update)
        if said:
            steps.insert(0, lambda stage, stem, report: report.markdown.append(said))
        report = export_bundle(model, request.to, config, plan, more=steps, progress=status.update)
    for name in report.retired:
        echo_warning(f"{name} belongs to the former {request.stem}.onnx; it is now {name}.stale")
    if request.as_json:
        click.echo(plain_json.dumps(report.to_dict()))
        return
    console = stdout()
    print_passes(console, report)
    console.print(parity_table(report.parity))
    for text in report.markdown:
        console.print(Markdown(text))
    shown = (".onnx", DATA_SUFFIX, ".xml", ".ort", ".html")
    for path in (request.folder / name for name in report.files if name.endswith(shown)):
        console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)


def further_steps(request: ExportRequest, plan: ParityPlan, model: ClusIR, progress: Progress) -> list[Step]:
    """What follows the fp32 graphs: other precisions, then other formats of all that is there; each compared."""
    steps: list[Step] = []
    if lower := tuple(p for p in request.precision if p != "fp32"):

        def validate(paths: Sequence[Path]) -> list[ParityRow]:
            return validate_files(model, paths, plan, progress)

        steps.append(
            lambda stage, stem, report: add_precisions(request, lower, validate, progress, stage, stem, report)
        )
    if request.openvino:

        def add_openvino(stage: Path, stem: str, report: ExportReport) -> None:
            from clusir.export.formats.openvino import write_openvino

            paths = write_openvino(report.onnx, stage / "openvino")
            brief = ParityPlan(("openvino",), sizes=plan.sizes[:2], batches=(1,), threads=plan.threads)
            rows = validate_files(model, paths, brief, progress, kinds=("noise", "none"))
            report.parity += rows
            check_rows(rows, [path.name for path in paths])

        steps.append(add_openvino)
    if request.ort_mobile:
        steps.append(lambda stage, stem, report: add_ort_mobile(stage, report))
    return steps


def add_precisions(
    request: ExportRequest,
    lower: tuple[str, ...],
    validate: Callable[[Sequence[Path]], list[ParityRow]],
    progress: Progress,
    stage: Path,
    stem: str,
    report: ExportReport,
) -> None:
    """fp16 and int8 files beside the fp32 ones, their quality against ground truth, and their parity.

    Of a missed budget the best is kept, with the graphs it needs, once it has been compared as any other file.
    """
    from clusir.export.precision.run import make_precisions

    config = replace(precision_config(vars(request)), precisions=lower)
    state = request.folder / f".{stem}.quantisation"
    missed: BudgetError | None = None
    try:
        made = make_precisions(stage, stem, config, state=state, progress=progress)
    except BudgetError as error:
        best = getattr(error, "report", None)
        if best is None:
            raise
        missed, made = error, best
    report.precisions = made.to_json()
    report.variants += made.files.values()
    if not request.bundle:  # beside a named file, names of its own
        for name in ("calibration.json", "frontier.svg"):
            if (stage / name).is_file():
                (stage / name).rename(stage / f"{stem}.{name}")
    if request.to.shared:
        for precision in dict.fromkeys(precision for precision, _ in made.files):
            pair = ((precision, graph) for graph in ("whole", "tile"))
            report.share([made.files[key] for key in pair if key in made.files])
    if made.files:  # bf16 alone makes none
        rows = validate(list(made.files.values()))
        report.parity += rows
        check_rows(rows, [path.name for path in made.files.values()])
    if missed is not None:
        report.keep += [path.relative_to(stage).as_posix() for path in (*report.onnx, *report.data)]
        raise missed
    report.markdown.append(made.to_markdown())


def add_ort_mobile(stage: Path, report: ExportReport) -> None:
    """Every ONNX file that was made as ``.ort`` with its operators and a usability report, in the folder ``mobile``."""
    from clusir.export.formats.ort_mobile import write_ort_mobile

    report.markdown.append(write_ort_mobile(report.onnx, stage / "mobile").to_markdown())


def run_module(
    request: ExportRequest,
    module: str | None,
    *,
    output: str | None = None,
    batch: int | None = None,
    size: int | None = None,
    maps: Sequence[tuple[str, float]] = (),
) -> None:
    """Bring your own model: somebody else's network, in the precisions that are asked for. Without ``module`` it is
    what the request's checkpoint holds."""
    refuse_idle_options({**vars(request), "checkpoint": None}, request.given)
    from clusir.export.module import ModuleOptions, export_module
    from clusir.export.precision.place import Placed

    options = ModuleOptions(
        dft=request.dft,  # type: ignore[arg-type]  # click has checked it
        router=request.router,
        output=output,
        batch=batch or 0,
        size=size or 0,
        tile=request.tile_px if "tile_px" in request.given else None,
        halo=request.halo_px if "halo_px" in request.given else None,
        backends=request.runtimes,
        precision=precision_config(vars(request), request.runtimes),
    )
    out = request.folder / f"{request.stem}.onnx"
    name, shape = module or str(request.checkpoint), request.input_shape
    network: Any = module
    notes: tuple[str, ...] = ()
    with Console(stderr=True).status(f"exporting {name}") as status:
        options = replace(options, maps=dict(maps))
        if network is None:
            from clusir.export.subjects.known import load_known

            known = load_known(name)
            network = known.network
            notes = (f"{Path(name).name}: weights of {known.architecture}", *known.notes)
            shape = shape if "input_shape" in request.given else "x".join(map(str, known.shape))
            if maps and not known.maps:
                raise UsageError(f"--map {maps[0][0]}: {known.architecture} takes the picture alone; leave it out")
            options = replace(options, maps={**known.maps, **options.maps})
        made = export_module(
            network,
            shape,
            out,
            options=options,
            progress=lambda step: status.update(f"exporting {name}: {step}"),
        )
    made = replace(made, notes=(*notes, *made.notes))
    for warning in made.warnings:
        echo_warning(warning)
    if request.as_json:
        told = {**asdict(replace(made, placed=Placed())), "path": str(made.path), "placed": placed_json(made.placed)}
        click.echo(plain_json.dumps(told))
    else:
        console = stdout()
        for note in made.notes:
            console.print(f"- {note}", highlight=False, soft_wrap=True)
        for found in made.agreements:
            console.print(str(found), highlight=False, soft_wrap=True)
        print_placed(made.placed, made.path.parent)
    for note in made.notes:
        if note.startswith("WARNING"):
            click.echo(note, err=True)
    if made.warnings:
        sys.exit(WARNING_EXIT_CODE)


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
