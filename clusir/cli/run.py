"""``clusir-run``: restore pictures, folders and globs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from clusir.cli._common import Printer, command
from clusir.cli._values import Setting
from clusir.errors import InterruptedRun
from clusir.names import AUTO, BACKENDS, BFLOAT16, DEVICES, PRECISIONS

if TYPE_CHECKING:
    from clusir.cli._run_output import RunOutput
    from clusir.cli._run_process import Request, Signals
    from clusir.runtimes.batch.jobs import Job
    from clusir.runtimes.batch.journal import Journal
    from clusir.runtimes.batch.memory import MemoryGate
    from clusir.runtimes.restore.restorer import Restorer

_EPILOG = """\b
Exit codes: 0 all done; 1 some pictures failed, the rest is done; 2 usage;
3 the backend or device is not available; 130 interrupted, run again to resume.
"""
_SMALL_BYTES = 2 << 30  # where half of it may not be there once the model is open
_RESTORER_OPTIONS = (
    "model", "backend", "device", "threads", "fallback", "routing", "precision", "alpha", "fix", "strength",
    "statistics", "settings",
)  # fmt: skip


@command(name="clusir-run", short_help="Restore pictures, folders and globs.", epilog=_EPILOG, no_args_is_help=True)
@click.argument("inputs", nargs=-1, metavar="IMAGE...")
@click.option("-o", "--output", help="A file for one picture, otherwise a folder; - is standard output.  [required]")
@click.option("--model", help="ONNX file, checkpoint, bundle folder or zip.  [default: the shipped model]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Runtime.")
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="auto: CUDA if it works. A device that is named and not available is an error.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime.  [default: the runtime decides]")
@click.option("--fallback", is_flag=True, help="Use the CPU if the device is not available.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, BFLOAT16, AUTO]),
    help="Open NAME.fp16.onnx or NAME.int8.onnx beside the model; bf16: compute the float32 file in bfloat16 "
    "(OpenVINO, on processors that have it); auto: the fastest here that loses little, measured once.",
)
@click.option(
    "--routing",
    type=click.Choice(["shared", "tile"]),
    help="shared: choose experts once for the whole picture; tile: for each tile.  [default: shared if possible]",
)
@click.option(
    "--set",
    "settings",
    type=Setting(files=True),
    multiple=True,
    help="For an input that a network takes beside the picture a number, such as sigma=15, or of a map a picture of "
    "the same size, such as mask=mask.png; may be repeated.",
)
@click.option(
    "--exact-statistics",
    "statistics",
    flag_value="exact",
    default="sampled",
    help="Of a network that pools over the picture: pool all of it, level by level, instead of windows. Slower.",
)
@click.option(
    "--alpha",
    type=click.Choice(["keep", "process", "drop"]),
    default="keep",
    show_default=True,
    help="Keep alpha bit-exact, restore it too, or leave it out.",
)
@click.option(
    "--fix",
    metavar="WHAT",
    help="noise, jpeg, blur, rain, haze, low-light (commas between), all, or auto: haze and darkness only where they "
    "are sure.  [default: auto]",
)
@click.option(
    "--strength",
    default="1",
    show_default=True,
    metavar="0..1",
    help="How far, and (or) families alone: 0.8, noise=0.6, 0.8,noise=0.6.",
)
@click.option("--format", "suffix", metavar="SUFFIX", help="Write all pictures as this format, for example png.")
@click.option("--recursive/--no-recursive", default=True, help="Also take pictures from subfolders.  [default: yes]")
@click.option("--skip-existing", is_flag=True, help="Skip inputs whose output file exists.")
@click.option("--no-resume", is_flag=True, help="Restore again what the journal in the output folder lists as done.")
@click.option("--max-memory", metavar="SIZE", help="Largest resident memory of the process, for example 1500M.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=1 << 29, show_default=True, help="Refuse larger pictures."
)
@click.option("--compare", is_flag=True, help="Also write NAME.compare.jpg: before | after.")
@click.option("--explain", is_flag=True, help="Print which degradations were recognised, and which experts ran.")
@click.option("--report", metavar="FILE", help="Write an HTML page with before and after.")
@click.option("--watch", is_flag=True, help="Keep restoring what appears in the folders, until Ctrl-C.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Restore on a Ray cluster: auto or HOST:PORT; without a value, on the processes of this machine.",
)
@click.option("--ray-workers", type=click.IntRange(1), help="Models open at once.  [default: one per CPU or GPU]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per picture, and one for the summary.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
def main(inputs: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Restore pictures: noise, blur, rain, haze, low light, JPEG artefacts, and mixtures of them.

    IMAGE is a file, a folder, a glob, or - for standard input. A folder goes to a folder with the same paths and
    names. Size, bit depth, colour profile, EXIF, alpha and format are kept. Run the command again to resume an
    interrupted run.
    """
    import warnings

    from clusir.cli._run_process import Signals

    options["settings"] = dict(options["settings"])
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is no news for who looks at the pictures
    with Signals().heard() as signals:
        failed = _run(inputs, output, options, signals)
    raise click.exceptions.Exit(1 if failed else 0)


def _run(inputs: tuple[str, ...], output: str | None, options: dict[str, Any], signals: Signals) -> int:
    """Number of pictures that failed."""
    from clusir.cli._run_process import piped
    from clusir.errors import UsageError

    if not output:
        named = inputs[0] if inputs else "PICTURE"
        raise UsageError(
            f"no output given; say where to: clusir-run {named} -o FILE, or -o FOLDER for several pictures"
        )
    suffix = options["suffix"]
    suffix = f".{suffix.lower().removeprefix('.')}" if suffix else None
    _check(inputs, output, suffix, options)
    with piped(inputs, output, suffix, options) as request:
        return _restore(request, suffix, options, signals)


def _check(inputs: tuple[str, ...], output: str, suffix: str | None, options: dict[str, Any]) -> None:
    """What is wrong with the options, before a model is opened for nothing."""
    from clusir.errors import UsageError
    from clusir.runtimes.batch.jobs import is_glob
    from clusir.runtimes.batch.memory import parse_size
    from clusir.runtimes.images.formats import WRITE_SUFFIXES

    if suffix is not None and suffix not in WRITE_SUFFIXES:
        raise UsageError(f"format {suffix!r} is not one of {', '.join(WRITE_SUFFIXES)}")
    if options["max_memory"] is not None:
        parse_size(options["max_memory"])
    if options["report"] is not None:
        _check_report(Path(options["report"]), options["model"])
    if options["watch"]:
        for text in inputs:
            if text != "-" and not Path(text).is_dir() and not is_glob(text):
                raise UsageError(f"--watch {text}: it is not a folder; name the folders in which pictures will appear")
    if options["ray"] and options["watch"]:
        raise UsageError("--ray and --watch do not go together; a watched folder is restored on this machine")
    if options["ray"] and options["ray"] not in ("local", "auto") and ":" not in options["ray"]:
        raise UsageError(f"--ray {options['ray']}: not an address; say local, auto or HOST:PORT behind --ray")


def _check_report(report: Path, model: str | None) -> None:
    from clusir.errors import UsageError
    from clusir.runtimes.images.formats import READ_SUFFIXES

    if report.is_dir():
        raise UsageError(f"--report {report}: it is a folder; name a file, for example report.html")
    if report.suffix.lower() in READ_SUFFIXES or (model is not None and report.absolute() == Path(model).absolute()):
        raise UsageError(f"--report {report}: it is a page, not a picture or model; name a file like report.html")


def _restore(request: Request, suffix: str | None, options: dict[str, Any], signals: Signals) -> int:
    from clusir.cli._run_output import RunOutput, passed_over
    from clusir.errors import UsageError
    from clusir.runtimes.batch.jobs import pixels_of, plan_jobs
    from clusir.runtimes.images.formats import READ_SUFFIXES

    inputs, output = request.inputs, Path(request.output)

    passed: set[Path] = set()

    def plan() -> list[Job]:
        rules = {"compare": options["compare"], "waiting": options["watch"]}
        return plan_jobs(inputs, output, options["recursive"], suffix, **rules, passed=passed)

    jobs = plan()
    if not jobs and not options["watch"]:
        raise UsageError(
            f"{', '.join(inputs)}: no pictures in there; names that end in {', '.join(READ_SUFFIXES)} are read"
            + (f"; {passed_over(passed)}" if passed else "")
        )
    if options["report"] is not None and Path(options["report"]).resolve() in {
        path.resolve() for job in jobs for path in (job.source, job.target)
    }:
        raise UsageError(f"--report {options['report']}: that is a picture's name; name a file like report.html")
    counted = options["precision"] == AUTO and not options["watch"] and not options["ray"]
    with _open_restorer(options, pixels_of(jobs) if counted else None) as restorer:
        shown = RunOutput(restorer, options, len(jobs), request.names, request.to_stdout)
        if restorer.chosen:
            shown.note(restorer.chosen)
        shown.passed = passed
        try:
            _restore_all(_Run(plan, jobs, inputs, output, options), restorer, shown, signals)
        except UsageError:
            raise  # nothing was begun: no summary above the line that says why
        except BaseException as error:
            if signals.pipeline is not None and signals.pipeline.stuck:
                _leave(error)
            shown.finish()
            raise
        shown.finish()
        return shown.failed


def _leave(error: BaseException) -> NoReturn:
    """End the process although a thread is still inside a decoder, an encoder or the disk; it may never come back."""
    import os

    from clusir.cli._common import echo_error

    echo_error(f"{error}; a picture that was being read or written was left")
    os._exit(getattr(error, "exit_code", 130))


def _open_restorer(options: dict[str, Any], pixels: int | None) -> Restorer:
    import warnings

    from clusir.runtimes.restore.restorer import Restorer

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        restorer = Restorer(**{name: options[name] for name in _RESTORER_OPTIONS}, pixels=pixels)
    for warning in caught:
        if issubclass(warning.category, RuntimeWarning):
            Printer(err=True).line(f"warning: {warning.message}")
    return restorer


class _Run(NamedTuple):
    plan: Callable[[], list[Job]]
    jobs: list[Job]
    inputs: tuple[str, ...]
    output: Path
    options: dict[str, Any]


def _restore_all(run: _Run, restorer: Restorer, shown: RunOutput, signals: Signals) -> None:
    from contextlib import ExitStack

    from clusir.cli._run_side import Side
    from clusir.runtimes.batch.pipeline import Pipeline
    from clusir.runtimes.batch.watch import watch
    from clusir.runtimes.images.picture import Limits

    options = run.options
    memory, report_mb = _memory(restorer, options)
    side = None
    if options["compare"] or options["report"] is not None:
        side = Side(restorer, options["report"] is not None, report_mb)
    limits = Limits(pixels=options["max_pixels"], decoded_bytes=1 << 62)
    with ExitStack() as stack:
        journal = _open_journal(run, restorer, shown)
        if journal is not None:
            stack.callback(journal.close)
        if side is not None:
            stack.callback(side.write, options["report"])
        if options["ray"]:
            from clusir.runtimes.batch.ray import RayOptions, restore_on_ray

            named = {name: options[name] for name in _RESTORER_OPTIONS}
            if restorer.chosen:  # what was chosen here holds for all workers, or pictures of one run would differ
                named |= {"backend": restorer.name.partition(":")[0], "precision": restorer.precision}
            bound = memory.total if options["max_memory"] else None
            how = RayOptions(options["ray"], options["ray_workers"], limits, bound, options["skip_existing"])
            restore_on_ray(run.jobs, named, shown.outcome, how, journal, side)
            return
        pipeline = Pipeline(restorer, journal, options["skip_existing"], memory, limits, side)
        signals.pipeline = pipeline
        if not options["watch"]:
            pipeline.run(run.jobs, shown.outcome)
            return
        shown.note(f"watching {', '.join(run.inputs)}; Ctrl-C ends it")
        try:
            for batch in watch(run.plan):
                pipeline.run(batch, shown.outcome)
        except (KeyboardInterrupt, InterruptedRun):
            return  # how a watch ends


def _open_journal(run: _Run, restorer: Restorer, shown: RunOutput) -> Journal | None:
    from clusir.errors import ModelFormatError
    from clusir.runtimes.batch.jobs import is_file_output
    from clusir.runtimes.batch.journal import Journal

    if is_file_output(run.inputs, run.output):
        return None
    settings = {
        "backend": restorer.name,
        "precision": restorer.precision,
        "routing": restorer.routing,
        "alpha": restorer.alpha,
    }
    if restorer.settings:
        told = sorted(restorer.settings.items())
        settings["settings"] = ",".join(f"{name}={_known_by(value)}" for name, value in told)
    if restorer.statistics != "sampled":
        settings["statistics"] = restorer.statistics
    if not (restorer.steering.plain and restorer.steering.blend == 1):
        settings["steering"] = restorer.steering.text
    files = restorer.files
    try:
        unchanged, digest = files.unchanged(), files.sha256()
    except OSError as error:
        raise ModelFormatError(f"model {files.whole}: cannot be read ({error.strerror or error})") from error
    journal = Journal(run.output, digest, settings, not run.options["no_resume"], unchanged)
    for note in journal.notes:
        shown.note(f"note: {note}")
    return journal


def _known_by(value: object) -> str:
    """A setting as the journal remembers it: a number, or what is in a picture file."""
    if not isinstance(value, str):
        return repr(value)
    import hashlib

    return hashlib.sha256(Path(value).read_bytes()).hexdigest()


def _memory(restorer: Restorer, options: dict[str, Any]) -> tuple[MemoryGate, float]:
    """Room for pictures, and megabytes for a report's thumbnails: what is allowed, less what interpreter, runtime and
    model take once they are warm."""
    from clusir.errors import UsageError
    from clusir.runtimes.batch.memory import MemoryGate, default_budget, parse_size
    from clusir.runtimes.machine.allowed import memory_bytes, resident_bytes

    wanted, there = options["max_memory"], memory_bytes()
    budget = default_budget() if wanted is None else parse_size(wanted)
    if budget > there:
        Printer(err=True).line(
            f"warning: --max-memory {wanted}: this process may use {there >> 20} MB; that much is taken"
        )
    budget = min(budget, there)
    if wanted is not None or there < _SMALL_BYTES:
        restorer.warm_up()
        taken = resident_bytes() + (64 << 20)  # zlib, libjpeg, threads' stacks
        if wanted is not None:
            budget -= taken
            if budget <= 0:
                raise UsageError(
                    f"--max-memory {wanted}: the model and its runtime take {taken >> 20} MB before any picture; "
                    "give more"
                )
        else:
            budget = max(0, min(budget, there - taken))
    report_mb = 0.0
    if options["report"] is not None:
        report_mb = min(40.0, budget / 16e6)
        budget -= int(4e6 * report_mb)  # thumbnails, the page made of them, and the page's bytes
    return MemoryGate(budget), report_mb
