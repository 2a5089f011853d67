"""What ``clusir-run`` shows: lines or JSON per picture, a progress bar, the summary, comparison and report."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusir.cli._common import echo_error
from clusir.errors import ClusirError

if TYPE_CHECKING:
    from clusir.runtimes.batch.pipeline import Outcome
    from clusir.runtimes.restore.restorer import Restorer

__all__ = ["RunOutput"]


def printable(text: str) -> str:
    """File names may hold escape sequences for the terminal, and bytes that are no text: shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class RunOutput:
    """Called once per finished picture (never by two threads at a time), and once at the end."""

    def __init__(self, restorer: Restorer, options: dict[str, Any], total: int) -> None:
        self._restorer, self._options = restorer, options
        self._json, self._quiet = options["as_json"], options["quiet"]
        self._counts = {"restored": 0, "skipped": 0, "failed": 0}
        self._pixels = 0
        self._begin = time.perf_counter()
        self._progress: Any = None
        self._task: Any = None
        self._report: Any = _open_report(restorer) if options["report"] else None
        if sys.stderr.isatty() and not (self._json or self._quiet or options["watch"]) and total > 1:
            self._start_progress(total)

    @property
    def failed(self) -> int:
        return self._counts["failed"]

    def outcome(self, outcome: Outcome) -> None:
        """Show one finished picture. A comparison or report entry that cannot be made counts as its failure."""
        try:
            self._extras(outcome)
        except ClusirError as error:
            outcome.status, outcome.reason = "failed", str(error)
        outcome.look = None
        self._counts[outcome.status] += 1
        if outcome.status == "restored" and outcome.info is not None:
            self._pixels += outcome.info.width * outcome.info.height
        if self._json:
            line = outcome.as_json()
            if self._options["explain"] and outcome.work.routing is not None:
                routing = outcome.work.routing
                line |= {"posterior": routing.posterior.tolist(), "gate": routing.gate.tolist()}
            click.echo(json.dumps(line))
        elif outcome.status == "failed":
            self._say_failed(printable(outcome.reason or ""))
        elif outcome.status == "restored" and self._options["watch"] and not self._quiet:
            click.echo(printable(f"{outcome.job.name} -> {outcome.job.target}"))
        if self._progress is not None:
            self._progress.advance(self._task)

    def watching(self, folders: tuple[str, ...]) -> None:
        """That the command waits, and how it ends."""
        if not (self._json or self._quiet):
            click.echo(f"watching {', '.join(map(printable, folders))}; Ctrl-C ends it", err=True)

    def _say_failed(self, reason: str) -> None:
        if self._progress is None:
            echo_error(reason)
        else:  # above the bar, which would otherwise be torn
            self._progress.console.print(f"error: {reason}", markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """The report, and the summary."""
        if self._progress is not None:
            self._progress.stop()
        if self._report is not None:
            self._report.write(self._options["report"])
        seconds = time.perf_counter() - self._begin
        restorer = self._restorer
        placement = restorer.placement()
        if self._json:
            facts: dict[str, Any] = {**self._counts, "seconds": round(seconds, 3), "megapixels": self._pixels / 1e6}
            facts |= {"backend": restorer.name, "placement": placement, "routing": restorer.routing}
            facts |= {"precision": restorer.spec.precision, "model": str(restorer.files.whole)}
            click.echo(json.dumps({"summary": facts}))
        elif not self._quiet:
            nodes = ", ".join(f"{name}: {count} nodes" for name, count in placement.items())
            counts = ", ".join(f"{n} {what}" for what, n in self._counts.items() if n or what == "restored")
            timed = self._pixels and not self._options["watch"]  # a watch mostly waits
            rate = f" ({self._pixels / 1e6 / seconds:.2f} megapixels/s)" if timed else ""
            click.echo(
                f"{counts} in {seconds:.1f} s{rate} on {restorer.name} ({nodes}), "
                f"{restorer.spec.precision}, routing {restorer.routing}"
            )
            if self._counts["skipped"] and not self._options["skip_existing"]:
                click.echo("what was skipped was done before; --no-resume does it again")

    def _extras(self, outcome: Outcome) -> None:
        job, routing = outcome.job, outcome.work.routing
        if outcome.status == "failed" and self._report is not None:
            self._report.add_failure(job.name, outcome.reason or "")
        if outcome.status != "restored":
            return
        if self._options["explain"] and not self._json:
            self._explain(outcome)
        if outcome.look is None:
            return
        before, after = outcome.look.before, outcome.look.after
        if self._options["compare"]:
            from clusir.runtimes.report.compare import write_comparison

            write_comparison(before, after, job.target.with_name(f"{job.target.stem}.compare.jpg"))
        if self._report is not None:
            times = {"decode": outcome.decode_s, "infer": outcome.work.infer_s, "encode": outcome.encode_s}
            self._report.add(
                job.name,
                before,
                after,
                posterior=routing.posterior if routing else None,
                gate=routing.gate if routing else None,
                spec=self._restorer.spec,
                size=(outcome.info.width, outcome.info.height) if outcome.info else None,
                timings_ms={k: 1000 * v for k, v in times.items()},
                note="; ".join(outcome.info.notes) if outcome.info else "",
            )

    def _explain(self, outcome: Outcome) -> None:
        from rich.markup import escape

        from clusir.runtimes.restore.explain import explain_lines

        routing = outcome.work.routing
        lines = [escape(printable(outcome.job.name))]
        if routing is not None:
            shared = "one routing" if routing.shared else "mean of the tiles' own routings"
            tiles = outcome.work.tiles
            lines[0] += f" ({tiles} {'tile' if tiles == 1 else 'tiles'}, {shared})"
            lines += explain_lines(routing.posterior, routing.gate, self._restorer.spec)
        else:
            lines.append("  the model has no routing")
        from rich.console import Console

        console = Console(highlight=False)
        for line in lines:
            console.print(line)

    def _start_progress(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=total)
        self._progress.start()


def _open_report(restorer: Restorer) -> Any:
    from clusir.runtimes.machine.fingerprint import describe, fingerprint
    from clusir.runtimes.report.collect import ReportWriter

    facts = {
        "model": Path(restorer.files.whole).name,
        "backend": restorer.name,
        "precision": restorer.spec.precision,
        "routing": restorer.routing,
        "nodes": ", ".join(
            f"{name.removesuffix('ExecutionProvider')}: {count}" for name, count in restorer.placement().items()
        ),
    }
    return ReportWriter(facts=facts, footer=describe(fingerprint()))
