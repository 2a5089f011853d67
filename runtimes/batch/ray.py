"""``clusir-run --ray``: the same restoration on a Ray cluster, for folders that one machine is too slow for.

Only paths travel: pictures and model must be readable, and the output folder writable, under the same absolute paths on
every node (a network file system). The journal stays with the process that was called, which records a picture when
the cluster reports it, so an interrupted run resumes there or without Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clusir.errors import BackendError, ClusirError, ImageError, first_line
from clusir.names import install_line
from clusir.runtimes.batch.jobs import Job
from clusir.runtimes.batch.journal import Journal
from clusir.runtimes.batch.memory import MemoryGate, default_budget
from clusir.runtimes.batch.parts import Look, Outcome, Stamp
from clusir.runtimes.batch.pipeline import Pipeline, SideOutputs, settle
from clusir.runtimes.images.picture import Limits
from clusir.runtimes.restore.restorer import Restorer

__all__ = ["RayOptions", "RestoreBatch", "connect", "restore_on_ray"]

_BATCH = 8


@dataclass(frozen=True)
class RayOptions:
    """``address``: see :func:`connect`. ``workers``: how many models are open at a time (None: one per CPU of the
    cluster, or per card with ``device`` cuda); each has ``threads`` threads, by default 1. ``limits`` and
    ``memory_bytes`` bound the pictures of one worker. ``skip_existing`` skips whatever has an output."""

    address: str | None = None
    workers: int | None = None
    limits: Limits | None = None
    memory_bytes: int | None = None
    skip_existing: bool = False


class _KeptLooks:
    """Side outputs are made where the command was called; a worker only looks."""

    def __init__(self) -> None:
        self.looks: dict[int, Look | None] = {}

    def wanted(self, job: Job, done: bool) -> bool:
        return True

    def make(self, outcome: Outcome) -> None:
        self.looks[id(outcome.job)] = outcome.look


class RestoreBatch:
    """A callable class for Ray Data's ``map_batches``: opens the model once, restores batches of file paths.

    ``restorer`` are the keyword arguments of :class:`clusir.runtimes.restore.restorer.Restorer`. It keeps nothing
    from one batch to the next, so any worker may take any batch, twice if need be. ``looks`` keeps before and after
    in the outcomes.
    """

    def __init__(
        self,
        restorer: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        memory_bytes: int | None = None,
        looks: bool = False,
    ) -> None:
        gate = MemoryGate(memory_bytes) if memory_bytes else None
        self._kept = _KeptLooks() if looks else None
        opened = Restorer(**(restorer or {}))
        # What is done is not restored again, but may be looked at.
        self._pipelines = [
            Pipeline(opened, skip_existing=done, memory=gate, limits=limits, side=self._kept) for done in (False, True)
        ]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``batch``: equally long columns ``source`` and ``target`` (paths), optionally ``name``, ``refusal`` and
        ``done`` (restored before: it is only looked at).

        Returns ``index`` (as given, or the place in the batch), ``status`` (``restored``, ``skipped`` or ``failed``),
        ``reason`` (empty where restored) and ``outcome`` (:class:`clusir.runtimes.batch.parts.Outcome`). A picture
        that cannot be restored is a row like any other.
        """
        sources, targets = list(batch["source"]), list(batch["target"])
        count = len(sources)
        names = list(batch.get("name", sources))
        refusals = list(batch.get("refusal", [""] * count))
        before = [bool(done) for done in batch.get("done", [False] * count)]
        jobs = [
            Job(Path(s), Path(t), str(n), str(r) or None)
            for s, t, n, r in zip(sources, targets, names, refusals, strict=True)
        ]
        done: dict[int, Outcome] = {}  # by job: two may have one target, and one of them its refusal
        for which, pipeline in enumerate(self._pipelines):
            chosen = [job for job, is_done in zip(jobs, before, strict=True) if is_done == bool(which)]
            pipeline.run(chosen, lambda outcome: done.update({id(outcome.job): outcome}))
        if self._kept is not None:
            for key, look in self._kept.looks.items():
                done[key].look = look
            self._kept.looks.clear()
        outcomes = np.empty(count, dtype=object)
        outcomes[:] = [done[id(job)] for job in jobs]
        return {
            "index": np.asarray(batch.get("index", np.arange(count))),
            "status": np.array([o.status for o in outcomes]),
            "reason": np.array([o.reason or "" for o in outcomes]),
            "outcome": outcomes,
        }


def connect(address: str | None = None) -> Any:
    """The ``ray`` module, connected: to ``address`` (``auto``, ``host:port``, ``ray://host:port``), or to a cluster of
    this machine alone where it is None or ``local``. Raises BackendError where ray or the cluster is not there."""
    # Ray reports usage to its makers unless told not to; a restoration of private photos has nothing to report.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(f"ray cannot be imported ({error}); install it with: {install_line('ray')}") from error
    if not ray.is_initialized():
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=False if address in (None, "local") else None,
            )
        except Exception as error:  # ray raises ConnectionError, ValueError, RuntimeError and its own
            reason = first_line(error)
            raise BackendError(
                f"ray at {address or 'local'}: cannot connect ({reason[:200]}); is it running?"
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return ray


def restore_on_ray(
    jobs: Sequence[Job],
    restorer: Mapping[str, Any],
    report: Callable[[Outcome], None],
    options: RayOptions | None = None,
    journal: Journal | None = None,
    side: SideOutputs | None = None,
) -> None:
    """Restore ``jobs`` on a cluster; the counterpart of :meth:`clusir.runtimes.batch.pipeline.Pipeline.run`.

    ``restorer``: keyword arguments of Restorer, ``model`` a path that every node can read or None for the shipped one.
    ``report`` is called once per job, one call at a time, in the order in which they finish. Raises BackendError where
    ray is not there, ClusirError where a worker cannot open the model.
    """
    options = options or RayOptions()
    ray = connect(options.address)
    opening = dict(restorer)
    opening["threads"] = opening.get("threads") or 1
    if opening.get("model") is not None:
        opening["model"] = str(Path(opening["model"]).absolute())
    rows: list[dict[str, Any]] = []
    waiting: list[Job] = []
    for job in jobs:
        done = _is_done(job, journal, options.skip_existing)
        if done and not (side is not None and side.wanted(job, done=True)):
            settle(Outcome(job, "skipped"), side, journal, report)
            continue
        rows.append(
            {
                "index": len(waiting),
                "source": str(job.source.absolute()),
                "target": str(job.target.absolute()),
                "name": job.name,
                "refusal": job.refusal or "",
                "done": done,
            }
        )
        waiting.append(job)
    if not waiting:
        return
    on_card = opening.get("device") == "cuda"
    workers = options.workers
    if workers is None:
        there = ray.cluster_resources()
        workers = int(there.get("GPU", 0) if on_card else there.get("CPU", 1) // opening["threads"])
    workers = max(1, min(workers, -(-len(waiting) // _BATCH)))
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, -(-len(rows) // _BATCH)))
    restored = dataset.map_batches(
        RestoreBatch,
        fn_constructor_kwargs={
            "restorer": opening,
            "limits": options.limits,
            # The workers of one machine share its memory.
            "memory_bytes": options.memory_bytes or default_budget() // workers,
            "looks": side is not None,
        },
        batch_size=_BATCH,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=opening["threads"],
        **({"num_gpus": 1} if on_card else {}),
    )
    try:
        for row in restored.iter_rows():
            settle(replace(row["outcome"], job=waiting[int(row["index"])]), side, journal, report)
    except ClusirError:
        raise
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _is_done(job: Job, journal: Journal | None, skip_existing: bool) -> bool:
    if job.refusal is not None:
        return False
    if skip_existing and job.target.exists():
        return True
    try:
        stamp = Stamp.of(job.source) if journal is not None else None
    except ImageError:
        return False  # the worker says what is wrong with the file
    return journal is not None and stamp is not None and journal.is_done(job.target, stamp.sha256)


def _cause(error: BaseException) -> ClusirError:
    """The error of ours inside one of Ray's, or Ray's last line."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ClusirError):
            kind = next((k for k in type(inner).__mro__ if k.__module__ == "clusir.errors"), ClusirError)
            words = [line for line in str(inner).strip().splitlines() if line.strip()]
            message = words[-1].partition(": ")[2] if words and words[-1].startswith("clusir.errors.") else str(inner)
            return kind(message)
        inner = getattr(inner, "cause", None) or inner.__cause__
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ClusirError(f"ray: {words[-1][:300] if words else type(error).__name__}")
