"""``clusir-run``: restore pictures, folders and globs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from clusir.cli._common import command

if TYPE_CHECKING:
    from clusir.cli._run_output import RunOutput
    from clusir.runtimes.batch.jobs import Job
    from clusir.runtimes.restore.restorer import Restorer

_EPILOG = """\b
Exit codes: 0 all done; 1 some pictures failed, the rest is done; 2 usage;
3 the backend or device asked for is not there; 130 interrupted, run again to resume.
"""
_RESTORER_OPTIONS = ("model", "backend", "device", "threads", "fallback", "routing", "precision", "alpha")


@command(name="clusir-run", short_help="Restore pictures, folders and globs.", epilog=_EPILOG)
@click.argument("inputs", nargs=-1, metavar="IMAGE...")
@click.option("-o", "--output", help="A file for one picture, otherwise a folder.  [required]")
@click.option("--model", help="ONNX file, checkpoint, bundle folder or zip.  [default: the shipped model]")
@click.option("--backend", type=click.Choice(["auto", "ort", "openvino", "torch"]), default="auto", show_default=True)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="A device that is named and not there is an error.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime.  [default: its own choice]")
@click.option("--fallback", is_flag=True, help="Allow the CPU where the named device is not there.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Which file of the bundle.")
@click.option(
    "--routing",
    type=click.Choice(["shared", "tile"]),
    help="One routing for the whole picture, or each tile its own.  [default: shared where the model can]",
)
@click.option(
    "--alpha",
    type=click.Choice(["keep", "process", "drop"]),
    default="keep",
    show_default=True,
    help="Keep alpha bit-exact, restore it as well, or leave it out.",
)
@click.option("--format", "suffix", metavar="SUFFIX", help="Write all pictures as this format, for example png.")
@click.option(
    "--recursive/--no-recursive", default=True, help="Look into folders inside folders.  [default: recursive]"
)
@click.option("--skip-existing", is_flag=True, help="Leave pictures alone that have an output, whatever it is.")
@click.option("--no-resume", is_flag=True, help="Do again what the output folder's journal knows as done.")
@click.option("--max-memory", metavar="SIZE", help="Bound on the resident memory, for example 1500M.")
@click.option("--max-pixels", type=click.IntRange(1), default=1 << 29, show_default=True, help="Larger pictures fail.")
@click.option("--compare", is_flag=True, help="Also write NAME.compare.jpg: before | after.")
@click.option("--explain", is_flag=True, help="Print what the model recognised and which experts ran.")
@click.option("--report", metavar="FILE", help="Write one self-contained HTML page.")
@click.option("--watch", is_flag=True, help="Go on restoring what appears in the folders, until Ctrl-C.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Restore on a Ray cluster: auto, HOST:PORT, or without a value one of this machine.",
)
@click.option("--ray-workers", type=click.IntRange(1), help="Models open at a time.  [default: one per CPU or card]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per picture, and one for the summary.")
@click.option("-q", "--quiet", is_flag=True, help="Only failures.")
def main(inputs: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Restore pictures: noise, blur, rain, haze, low light, JPEG artefacts, and mixtures of them.

    IMAGE is a file, a folder, or a glob. A folder goes to a folder with the same paths and names. Size, bit depth,
    colour profile, EXIF, alpha and format are kept. An interrupted run goes on where it stopped.
    """
    import signal
    import threading
    import warnings

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # a killed batch ends as cleanly as one that was interrupted
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is no news for who looks at the pictures
    failed = _run(inputs, output, options)
    raise click.exceptions.Exit(1 if failed else 0)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(inputs: tuple[str, ...], output: str | None, options: dict[str, Any]) -> int:
    """Number of pictures that failed."""
    from pathlib import Path

    from clusir.cli._run_output import RunOutput
    from clusir.errors import UsageError
    from clusir.runtimes.batch.jobs import is_glob, plan_jobs
    from clusir.runtimes.batch.memory import parse_size
    from clusir.runtimes.images.formats import READ_SUFFIXES

    if not output:
        named = inputs[0] if inputs else "PICTURE"
        raise UsageError(
            f"no output given; say where to: clusir-run {named} -o FILE, or -o FOLDER for several pictures"
        )
    if options["max_memory"] is not None:
        parse_size(options["max_memory"])  # before the model is opened for nothing
    if options["report"] is not None and Path(options["report"]).is_dir():
        raise UsageError(f"--report {options['report']}: it is a folder; name a file, for example report.html")
    if options["watch"]:
        for text in inputs:
            if not Path(text).is_dir() and not is_glob(text):
                raise UsageError(f"--watch {text}: it is not a folder; name the folders in which pictures will appear")
    if options["ray"] and options["watch"]:
        raise UsageError("--ray and --watch do not go together; a watched folder is restored on this machine")
    if options["ray"] and options["ray"] not in ("local", "auto") and ":" not in options["ray"]:
        raise UsageError(f"--ray {options['ray']}: not an address; say local, auto or HOST:PORT behind --ray")
    suffix = options["suffix"]
    suffix = f".{suffix.lower().removeprefix('.')}" if suffix else None

    def plan() -> list[Job]:
        return plan_jobs(inputs, Path(output), options["recursive"], suffix)

    jobs = plan()
    if not jobs and not options["watch"]:
        raise UsageError(
            f"{', '.join(inputs)}: no pictures in there; names that end in {', '.join(READ_SUFFIXES)} are read"
        )
    with _open_restorer(options) as restorer:
        shown = RunOutput(restorer, options, len(jobs))
        try:
            _restore_all(plan, jobs, inputs, Path(output), restorer, shown, options)
        except UsageError:
            raise  # nothing was begun: no summary above the line that says why
        except BaseException:
            shown.finish()
            raise
        shown.finish()
        return shown.failed


def _open_restorer(options: dict[str, Any]) -> Restorer:
    import warnings

    from clusir.runtimes.restore.restorer import Restorer

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        restorer = Restorer(**{name: options[name] for name in _RESTORER_OPTIONS})
    for warning in caught:
        if issubclass(warning.category, RuntimeWarning):
            click.echo(f"warning: {warning.message}", err=True)
    return restorer


def _restore_all(
    plan: Any,
    jobs: list[Job],
    inputs: tuple[str, ...],
    output: Any,
    restorer: Restorer,
    shown: RunOutput,
    options: dict[str, Any],
) -> None:
    from contextlib import ExitStack

    from clusir.runtimes.batch.jobs import is_file_output
    from clusir.runtimes.batch.journal import Journal
    from clusir.runtimes.batch.pipeline import Pipeline
    from clusir.runtimes.batch.watch import watch
    from clusir.runtimes.images.picture import Limits

    memory = _memory_gate(restorer, options["max_memory"])
    with ExitStack() as stack:
        journal = None
        if not is_file_output(inputs, output):
            settings = {"backend": restorer.name, "routing": restorer.routing, "alpha": restorer.alpha}
            journal = Journal(output, restorer.files.sha256(), settings, resume=not options["no_resume"])
            stack.callback(journal.close)
        limits = Limits(pixels=options["max_pixels"], decoded_bytes=1 << 62)
        looks = options["compare"] or options["report"] is not None
        if options["ray"]:
            from clusir.runtimes.batch.ray import restore_on_ray

            named = {name: options[name] for name in _RESTORER_OPTIONS}
            bounds: dict[str, Any] = {"limits": limits, "memory_bytes": memory.total if options["max_memory"] else None}
            restore_on_ray(
                jobs, named, shown.outcome, address=options["ray"], workers=options["ray_workers"], journal=journal,
                skip_existing=options["skip_existing"], looks=looks, **bounds,
            )  # fmt: skip
            return
        pipeline = Pipeline(restorer, journal, options["skip_existing"], memory, limits, looks)
        if not options["watch"]:
            pipeline.run(jobs, shown.outcome)
            return
        shown.watching(inputs)
        try:
            for batch in watch(plan):
                pipeline.run(batch, shown.outcome)
        except KeyboardInterrupt:
            return  # how a watch ends


def _memory_gate(restorer: Restorer, wanted: str | None) -> Any:
    """Room for pictures: what was allowed, less what interpreter, runtime and model take once they are warm."""
    from clusir.errors import UsageError
    from clusir.runtimes.batch.memory import MemoryGate, default_budget, parse_size, resident_bytes

    if wanted is None:
        return MemoryGate(default_budget())
    budget = parse_size(wanted)
    restorer.warm_up()
    taken = resident_bytes() + (64 << 20)  # zlib, libjpeg, threads' stacks
    if budget <= taken:
        raise UsageError(
            f"--max-memory {wanted}: the model and its runtime take {taken >> 20} MB before any picture; give more"
        )
    return MemoryGate(budget - taken)
