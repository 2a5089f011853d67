"""What ``clusir-run`` shows: lines or JSON per picture, a progress bar, the summary. Showing never ends the work."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusir.cli._common import Printer

if TYPE_CHECKING:
    from clusir.runtimes.batch.parts import Outcome
    from clusir.runtimes.restore.restorer import Restorer

__all__ = ["RunOutput", "passed_over"]

_NOTED_APART = 10  # pictures whose notes are shown one by one; of more, each note is counted


class RunOutput:
    """Called once per finished picture (never by two threads at a time), and once at the end. ``names`` are paths
    that are shown as something else (the files behind standard input and output)."""

    def __init__(
        self,
        restorer: Restorer,
        options: Mapping[str, Any],
        total: int,
        names: Mapping[str, str],
        to_stderr: bool = False,
    ) -> None:
        self._restorer, self._options, self._total, self._names = restorer, options, total, names
        self._json, self._quiet = options["as_json"], options["quiet"]
        self._counts = {"restored": 0, "skipped": 0, "failed": 0}
        self._notes: Counter[str] = Counter()
        self.passed: set[Path] = set()
        self._pixels = 0
        self._begin = time.perf_counter()
        self._progress: Any = None
        self._task: Any = None
        self._out, self._err = Printer(err=to_stderr), Printer(err=True)
        watched = sys.stderr is not None and sys.stderr.isatty()
        if watched and not (self._json or self._quiet or options["watch"]) and total > 1:
            self._start_progress(total)

    @property
    def failed(self) -> int:
        """Pictures that failed, and lines that could not be shown though somebody waits for them."""
        return self._counts["failed"] + (self._out.problem is not None)

    def outcome(self, outcome: Outcome) -> None:
        """Show one finished picture."""
        from clusir.runtimes.images.names import printable

        self._counts[outcome.status] += 1
        if outcome.status == "restored" and outcome.info is not None:
            self._pixels += outcome.info.width * outcome.info.height
        if self._json:
            line = outcome.as_json()
            line |= {key: self._named(line[key]) for key in ("input", "output", "reason") if key in line}
            if self._options["explain"] and outcome.work.routing is not None:
                routing = outcome.work.routing
                line |= {"posterior": routing.posterior.tolist(), "gate": routing.gate.tolist()}
                if len(routing.evidence):
                    evidence = zip(self._restorer.spec.families, routing.evidence.tolist(), strict=True)
                    line |= {"evidence": dict(evidence), "hints": outcome.work.hints}
                    line |= {"unchanged": outcome.work.unchanged}
            self._out.line(_strict(line))
        elif outcome.status == "failed":
            self._say_failed(printable(self._named(outcome.reason or "")))
        elif outcome.status == "restored":
            if self._options["explain"]:
                self._explain(outcome)
            self._note_what_was_lost(outcome)
            if self._options["watch"] and not self._quiet:
                self._out.line(printable(f"{outcome.job.name} -> {outcome.job.target}"))
        if self._progress is not None:
            self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """A line that is no result: what became of a journal, which folders are watched."""
        from clusir.runtimes.images.names import printable

        if not (self._json or self._quiet):
            self._err.line(printable(text))

    def finish(self) -> None:
        """The summary. What was not begun when the run was stopped is counted too."""
        if self._progress is not None:
            self._progress.stop()
        seconds = time.perf_counter() - self._begin
        restorer = self._restorer
        placement = restorer.placement()
        left = 0 if self._options["watch"] else max(0, self._total - sum(self._counts.values()))
        if self._json:
            facts: dict[str, Any] = {**self._counts, "not_done": left}
            facts["passed_over"] = dict(sorted(Counter(path.suffix.lower() for path in self.passed).items()))
            facts |= {"seconds": round(seconds, 3), "megapixels": self._pixels / 1e6}
            facts |= {"backend": restorer.name, "placement": placement, "routing": restorer.routing}
            facts |= {"precision": restorer.precision, "model": str(restorer.files.whole)}
            facts |= {"chosen": restorer.chosen} if restorer.chosen else {}
            self._out.line(_strict({"summary": facts}))
        elif not self._quiet:
            nodes = ", ".join(f"{name}: {count} nodes" for name, count in placement.items())
            told = {**self._counts, "not done": left}
            counts = ", ".join(f"{n} {what}" for what, n in told.items() if n or what == "restored")
            timed = self._pixels and not self._options["watch"]  # a watch mostly waits
            rate = f" ({self._pixels / 1e6 / seconds:.2f} megapixels/s)" if timed else ""
            self._out.line(
                f"{counts} in {seconds:.1f} s{rate} on {restorer.name} ({nodes}), "
                f"{restorer.precision}, routing {restorer.routing}"
            )
            for note, count in sorted(self._notes.items()):
                self._out.line(f"note: {note} ({count} {'picture' if count == 1 else 'pictures'})")
            if self.passed:
                self._out.line(passed_over(self.passed))
            if self._counts["skipped"] and not self._options["skip_existing"]:
                self._out.line("what was skipped was done before; --no-resume does it again")
        if self._out.problem is not None:
            self._err.line(f"error: standard output cannot be written ({self._out.problem}); the pictures are done")

    def _note_what_was_lost(self, outcome: Outcome) -> None:
        from clusir.runtimes.images.names import printable

        notes = outcome.info.notes if outcome.info is not None else ()
        if self._total > _NOTED_APART:
            self._notes.update(printable(note) for note in notes)
        elif notes and not self._quiet:
            line = printable(f"note: {self._named(outcome.job.name)}: {'; '.join(notes)}")
            if self._progress is None:
                self._err.line(line)
            else:
                self._err.guarded(lambda: self._progress.console.print(line, markup=False, highlight=False))

    def _named(self, text: str) -> str:
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text

    def _say_failed(self, reason: str) -> None:
        line = f"error: {' '.join(reason.split())}"
        if self._progress is None:
            self._err.line(line)
        else:  # above the bar, which would otherwise be torn
            self._err.guarded(lambda: self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True))

    def _explain(self, outcome: Outcome) -> None:
        from rich.console import Console
        from rich.markup import escape

        from clusir.runtimes.images.names import printable
        from clusir.runtimes.restore.explain import explain_lines

        if self._out.stream() is None:
            return
        routing = outcome.work.routing
        lines = [escape(printable(self._named(outcome.job.name)))]
        if routing is not None:
            shared = "one routing" if routing.shared else "mean of the tiles' own routings"
            tiles = outcome.work.tiles
            lines[0] += f" ({tiles} {'tile' if tiles == 1 else 'tiles'}, {shared})" * (tiles > 0)
            spec, plain = self._restorer.spec, self._out.is_narrow()
            lines += explain_lines(routing.posterior, routing.gate, spec, plain=plain, evidence=routing.evidence)
            lines += ["  nothing to mend: the picture is as it was"] * outcome.work.unchanged
            lines += [f"  {hint}" for hint in outcome.work.hints]
        else:
            lines.append("  the model has no routing")
        console = Console(file=self._out.stream(), highlight=False)
        with console.capture() as shown:  # rich would end the process where nobody reads any more
            for line in lines:
                console.print(line)
        self._out.line(shown.get().rstrip("\n"))

    def _start_progress(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=total)
        self._progress.start()


def passed_over(paths: Collection[Path]) -> str:
    """A line that counts pictures of formats that are not read, and says what to do about each."""
    from clusir.runtimes.images.formats import unread_format

    counts = Counter(path.suffix.lower() for path in paths)
    by_advice: dict[str, list[str]] = {}
    for suffix, count in sorted(counts.items()):
        by_advice.setdefault(unread_format(suffix) or "", []).append(f"{count} {suffix}")
    parts = [f"{', '.join(found)}: {advice}" for advice, found in by_advice.items()]
    what = "picture is of a format" if len(paths) == 1 else "pictures are of formats"
    return f"passed over: {len(paths)} {what} not read here ({'; '.join(parts)})"


def _strict(line: dict[str, Any]) -> str:
    """JSON as every reader takes it: text without lone surrogates, numbers without NaN and infinity (null)."""
    from clusir.runtimes.images.names import as_text

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return as_text(value) if isinstance(value, str) else value

    return json.dumps(clean(line), allow_nan=False)
