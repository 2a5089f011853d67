"""What ``clusir-run`` makes of before and after: comparisons, and the entries of the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.runtimes.batch.jobs import Job
    from clusir.runtimes.batch.parts import Outcome
    from clusir.runtimes.restore.restorer import Restorer

__all__ = ["Side"]


class Side:
    """Comparisons where jobs reserve names for them, and a report. One outcome at a time."""

    def __init__(self, restorer: Restorer, report: bool, budget_mb: float) -> None:
        self._spec = restorer.spec
        self._report: Any = _open_report(restorer, budget_mb) if report else None
        self._most_private: tuple[int, Path] | None = None

    def wanted(self, job: Job, done: bool) -> bool:
        """Whether the pictures before and after are needed. Of what is ``done``, the comparison may be there."""
        if self._report is not None:
            return True
        return job.comparison is not None and not (done and _is_current(job.comparison, job.target))

    def make(self, outcome: Outcome) -> None:
        """Raises ClusirError where the comparison cannot be written."""
        job, look, routing = outcome.job, outcome.look, outcome.work.routing
        if outcome.status == "failed" and self._report is not None:
            self._report.add_failure(job.name, outcome.reason or "")
        if look is None:
            return
        try:
            if job.comparison is not None:
                from clusir.runtimes.report.compare import write_comparison

                write_comparison(look.before, look.after, job.comparison, like=job.source)
        except Exception as error:
            if self._report is not None:
                self._report.add_failure(job.name, str(error))
            raise
        if self._report is None:
            return
        from clusir.runtimes.restore.explain import account

        self._note_permissions(job.source)
        times = {"decode": outcome.decode_s, "infer": outcome.work.infer_s, "encode": outcome.encode_s}
        notes = list(outcome.info.notes) if outcome.info else []
        notes += ["done before"] if outcome.status == "skipped" else []
        notes += ["nothing to mend: as it was"] * outcome.work.unchanged + outcome.work.hints
        self._report.add(
            job.name,
            look.before,
            look.after,
            account=account(routing.posterior, routing.gate, self._spec, routing.evidence) if routing else None,
            size=(outcome.info.width, outcome.info.height) if outcome.info else None,
            timings_ms={k: 1000 * v for k, v in times.items() if outcome.status == "restored"},
            note="; ".join(notes),
        )

    def write(self, path: str | None) -> None:
        """The report's page. Raises ImageError where it cannot be written."""
        if self._report is not None and path is not None:
            self._report.write(path, self._most_private[1] if self._most_private else None)

    def _note_permissions(self, source: Path) -> None:
        """The page shows every picture, so it is no more open than the most private of them."""
        try:
            mode = source.stat().st_mode & 0o066
        except OSError:
            return
        if self._most_private is None or mode.bit_count() < self._most_private[0]:
            self._most_private = mode.bit_count(), source


def _is_current(comparison: Path, target: Path) -> bool:
    try:
        return comparison.stat().st_mtime_ns >= target.stat().st_mtime_ns
    except OSError:
        return False


def _open_report(restorer: Restorer, budget_mb: float) -> Any:
    from clusir.runtimes.machine.fingerprint import describe, fingerprint
    from clusir.runtimes.report.collect import ReportWriter

    facts = {
        "model": Path(restorer.files.whole).name,
        "backend": restorer.name,
        "precision": restorer.precision,
        "routing": restorer.routing,
        "nodes": ", ".join(
            f"{name.removesuffix('ExecutionProvider')}: {count}" for name, count in restorer.placement().items()
        ),
    }
    return ReportWriter(facts=facts, footer=describe(fingerprint()), budget_mb=budget_mb)
