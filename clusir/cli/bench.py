"""``clusir-bench``: speed, memory and quality in one table over backend, precision and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from clusir.cli._common import command
from clusir.cli._values import Integers, Words
from clusir.names import BFLOAT16, DEVICES, MODULES, PRECISIONS, install_line, installed_backends

if TYPE_CHECKING:
    from clusir.runtimes.machine.measure import Case, Measurement


@command(name="clusir-bench", short_help="Measure speed, memory and quality.")
@click.option("--model", "models", multiple=True, help="ONNX file or bundle; repeatable.  [default: the shipped model]")
@click.option("--backend", type=Words(tuple(MODULES)), help="For example ort,openvino.  [default: all installed]")
@click.option(
    "--precision",
    type=Words((*PRECISIONS, BFLOAT16)),
    help="For example fp32,bf16,int8.  [default: all that the model has]",
)
@click.option(
    "--size",
    type=Integers(1, 20000),
    default="256,1024",
    show_default=True,
    help="Sides of square pictures, pixels.",
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="auto: CUDA if it works.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime.  [default: the runtime decides]")
@click.option("--batch", type=click.IntRange(1, 256), help="Tiles in one call.  [default: 1; on CUDA 8]")
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Timed runs for each row.")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="Warm-up runs for each row.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, in a process for each row.")
@click.option("--quality", metavar="FOLDER", help="Also measure PSNR and SSIM on degraded copies of these photos.")
@click.option("--baselines", is_flag=True, help="With --quality: classical filters on the same pixels.")
@click.option("--clusters", metavar="FOLDER", help="Instead measure how well clusters tell degradations apart.")
@click.option("--harm", metavar="FOLDER", help="Instead measure how far these undamaged photos are moved.")
@click.option(
    "--peers", metavar="FOLDER", help="Instead denoise beside BM3D and others; clean photos, or noisy/ clean/."
)
@click.option("--limit", type=click.IntRange(1), help="Number of photos to take.  [default: all; with --clusters 16]")
@click.option("-o", "--output", metavar="FOLDER", help="Also write bench.md and bench.json there.")
@click.option("--cuda-matrix", metavar="FOLDER", help="Instead validate and time everything on an NVIDIA card.")
@click.option("--quick", is_flag=True, help="With --cuda-matrix: the smallest subset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def main(**options: Any) -> None:
    """Measure speed, memory and quality of restoration, from file to file.

    One row for each backend, precision and size. Rows of one size take turns in one process, so that their ratios
    hold on a busy machine too.

    \b
    Exit codes: 0 done; 1 some rows failed; 2 usage; 3 a backend or device that was named is not
    available; 4 --cuda-matrix found a configuration outside its bounds.
    """
    if options["cuda_matrix"]:
        from clusir.export.cuda.matrix import run_matrix

        device = "cuda" if options["device"] == "auto" else options["device"]
        report = run_matrix(
            options["cuda_matrix"], device, quick=options["quick"], runs=options["runs"], progress=_say(options)
        )
        click.echo(report.to_json() if options["as_json"] else report.to_markdown())
        raise click.exceptions.Exit(0 if report.passed else 4)
    if options["baselines"] and not options["quality"]:
        raise click.UsageError("--baselines goes with --quality FOLDER")
    asked = [name for name in ("quality", "clusters", "harm", "peers") if options[name]]
    if len(asked) > 1:
        named = " and ".join(f"--{name} FOLDER" for name in asked[:2])
        raise click.UsageError(f"{named} are two measurements; run one, then the other")
    if options["clusters"]:
        _clusters(options)
        return
    if options["harm"] or options["peers"]:
        _pictures(options, "harm" if options["harm"] else "peers")
        return
    _bench(options)


def _clusters(options: dict[str, Any]) -> None:
    import json
    from pathlib import Path

    from clusir.cli._bench_quality import measure_clusters

    report, about = measure_clusters(options, _say(options))
    if options["output"]:
        report.write(Path(options["output"]), about)
    click.echo(json.dumps({"about": about, **report.to_dict()}) if options["as_json"] else report.to_markdown())


def _pictures(options: dict[str, Any], what: str) -> None:
    import json
    from pathlib import Path

    from clusir.cli._bench_quality import measure_harm, measure_peers

    measured = (measure_harm if what == "harm" else measure_peers)(options, _say(options))
    text, data = measured.to_markdown(), json.dumps(measured.to_dict(), indent=2)
    if options["output"]:
        folder = Path(options["output"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{what}.md").write_text(text + "\n", encoding="utf-8")
        (folder / f"{what}.json").write_text(data + "\n", encoding="utf-8")
    click.echo(data if options["as_json"] else text)


def _say(options: dict[str, Any]) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not options["as_json"]:
            click.echo(text, err=True)

    return say


def _bench(options: dict[str, Any]) -> None:
    import json
    from pathlib import Path

    from clusir.cli._bench_quality import measure_quality
    from clusir.errors import ClusirError
    from clusir.runtimes.machine.fingerprint import fingerprint
    from clusir.runtimes.machine.measure import bench_cases, peak_memory_mib
    from clusir.runtimes.machine.table import as_json, to_markdown

    say = _say(options)
    if options["quality"]:  # an empty folder is said before minutes of measuring
        from clusir.quality.evaluate import list_pictures

        list_pictures(options["quality"])
    cases = [case for size in options["size"] for case in _cases(options, size)]
    measured = bench_cases(cases, options["runs"], options["warmup"], lambda text: say(f"measuring {text}"))
    if options["memory"]:
        for m in measured:
            if not m.error:
                say(f"memory of {m.case.label}")
                try:
                    m.peak_mib = peak_memory_mib(m.case)
                except ClusirError as error:
                    m.error = str(error)
    qualities = measure_quality(options, measured, say) if options["quality"] else []
    machine = fingerprint(options["threads"])
    data = as_json(measured, machine, options["runs"], [q.to_dict() for q in qualities])
    tables = [f"## Quality: {q.model}\n\n{q.to_markdown()}" for q in qualities]
    text = to_markdown(measured, machine, options["runs"], tables)
    if options["output"]:
        folder = Path(options["output"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.md").write_text(text)
        (folder / "bench.json").write_text(json.dumps(data, indent=2) + "\n")
    if options["as_json"]:
        click.echo(json.dumps(data, indent=2))
    else:
        _show(measured, tables, machine)
    raise click.exceptions.Exit(1 if any(m.error for m in measured) else 0)


def _cases(options: dict[str, Any], size_px: int) -> list[Case]:
    """Every combination that exists. What was named and is not there is an error; what was not named is left out."""
    from clusir.errors import BackendError, UsageError
    from clusir.runtimes.machine.measure import Case
    from clusir.runtimes.runners.files import find_model

    installed = installed_backends()
    for backend in options["backend"] or ():
        if backend not in installed:
            raise BackendError(f"backend {backend} is not installed; install it with: {install_line(MODULES[backend])}")
    if not installed:
        raise BackendError(f"no backend is installed; install one with: {install_line('onnxruntime')}")
    cases = []
    for model in options["models"] or (None,):
        for backend in options["backend"] or installed:
            if options["device"] == "cuda" and backend == "openvino" and not options["backend"]:
                continue
            for precision in options["precision"] or PRECISIONS:
                if precision == BFLOAT16 and backend != "openvino" and not options["backend"]:
                    continue
                try:
                    files = find_model(model, precision, backend)
                except UsageError:
                    if options["precision"] and (options["backend"] or backend == "ort"):
                        raise
                    continue
                if (backend == "torch") == (files.whole.suffix == ".safetensors"):
                    case = Case(
                        model, backend, options["device"], precision, size_px, options["threads"], options["batch"]
                    )
                    cases.append(case)
    if not cases:
        raise UsageError(f"no model file fits; backends {', '.join(options['backend'] or installed)} were asked for")
    return cases


def _show(measured: list[Measurement], tables: list[str], machine: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from clusir.runtimes.machine.fingerprint import describe
    from clusir.runtimes.machine.table import COLUMNS, rows

    console = Console(highlight=False)
    # A narrow terminal gets the columns that decide; the files and --json always have all.
    narrow = ("open + first ms", "nodes", "model", "decode / infer / encode ms", "images/s")
    kept = [i for i, name in enumerate(COLUMNS) if console.width >= 150 or name not in narrow]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for i in kept:
        table.add_column(COLUMNS[i], justify="left" if i < 4 else "right", no_wrap=i == 3)
    for row in rows(measured):
        table.add_row(*(row[i] for i in kept))
    console.print(table)
    for text in tables:
        click.echo("\n" + text)
    console.print(f"[dim]{describe(machine)}[/dim]", soft_wrap=True)
