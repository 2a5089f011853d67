"""Many pictures through one model: decode, infer and encode at the same time, one bad file never stops the rest.

Three stages: a thread that opens and decodes the next picture, the caller's thread that restores, a thread that encodes
and writes. What is between them is bounded: one decoded picture waits at most, a few bands of rows are on their way to
the encoder, and :class:`clusir.runtimes.batch.memory.MemoryGate` counts the bytes of all. Every hand-over can be called
off (:class:`clusir.runtimes.batch.flow.Flow`), so that whatever fails wherever, the run ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from clusir.atomic import remove_dead_partials
from clusir.errors import ImageError, InterruptedRun
from clusir.runtimes.batch.flow import Channel, Flow, GaveUp, Stopped
from clusir.runtimes.batch.jobs import Job
from clusir.runtimes.batch.journal import Journal
from clusir.runtimes.batch.memory import (
    BANDS_UNDERWAY,
    MemoryGate,
    default_budget,
    look_bytes,
    look_step,
    working_bytes,
)
from clusir.runtimes.batch.parts import Look, Opened, Outcome, Stamp, Watched, look_at
from clusir.runtimes.batch.trouble import is_full, make_folder, reason_of
from clusir.runtimes.images.files import Probe, output_info, probe_picture, save_picture
from clusir.runtimes.images.picture import Limits, PictureInfo
from clusir.runtimes.restore.restorer import Restorer

__all__ = ["Look", "Outcome", "Pipeline", "SideOutputs", "settle"]

_GRACE_S = 5.0  # for a thread that is inside a decoder, an encoder or the disk when the run is stopped

Bands = Channel[NDArray[Any]]


class SideOutputs(Protocol):
    """What is made beside the picture, of its :class:`Look`."""

    def wanted(self, job: Job, done: bool) -> bool:
        """Whether ``job`` needs a look; ``done``: its picture was restored before and is not restored again."""
        ...

    def make(self, outcome: Outcome) -> None:
        """Raises ClusirError where it cannot be made."""
        ...


def settle(
    outcome: Outcome, side: SideOutputs | None, journal: Journal | None, report: Callable[[Outcome], None]
) -> None:
    """The end of every job: side outputs, then the journal, then the report. A side output that cannot be made makes
    the job a failed one, so that it is done again. Raises what the journal and ``report`` raise."""
    try:
        if side is not None:
            side.make(outcome)
    except Exception as error:
        outcome.status, outcome.reason = "failed", reason_of(outcome.job, error)
    outcome.look = None
    try:
        if journal is not None and outcome.status != "skipped":
            job = outcome.job
            journal.record(job.source, job.target, outcome.status, outcome.reason, outcome.input_sha256)
    finally:
        report(outcome)


class Pipeline:
    """Runs jobs through a :class:`Restorer`.

    ``journal`` (may be None) skips what it knows as done and records what gets done; ``skip_existing`` skips whatever
    has an output. ``memory`` bounds the bytes of all pictures underway. ``side`` is given before and after.
    """

    def __init__(
        self,
        restorer: Restorer,
        journal: Journal | None = None,
        skip_existing: bool = False,
        memory: MemoryGate | None = None,
        limits: Limits | None = None,
        side: SideOutputs | None = None,
    ) -> None:
        self.restorer, self.journal, self.skip_existing = restorer, journal, skip_existing
        self.memory = memory or MemoryGate(default_budget())
        self.limits, self.side = limits or Limits(), side
        self.stuck = False
        self._flow: Flow | None = None
        self._in_model = False
        self._cleaned: set[Path] = set()

    def run(self, jobs: Iterable[Job], report: Callable[[Outcome], None]) -> None:
        """Do all ``jobs``; ``report`` is called once for each that was begun, from any thread, one call at a time.

        A failed job is an Outcome, not an exception; only what makes all further work senseless (the journal cannot be
        written, the disk is full, ``report`` raises, KeyboardInterrupt) is raised, after the pictures underway are
        dropped. A stopped run ends within seconds; :attr:`stuck` says whether a thread was left behind inside a
        decoder, an encoder or the disk. Raises InterruptedRun after :meth:`stop`.
        """
        flow = self._flow = Flow()
        self.memory.used = 0
        lock, over = threading.Lock(), False

        def tell(outcome: Outcome) -> None:
            with lock:
                if not over:  # a thread that was left behind has nothing to say any more
                    settle(outcome, self.side, self.journal, report)

        opened: Channel[Opened] = Channel(flow, 1)
        saving: Channel[tuple[Opened, Bands]] = Channel(flow, 1)
        threads = [
            flow.start(lambda: self._open_all(flow, jobs, opened, tell)),
            flow.start(lambda: self._save_all(flow, saving, tell)),
        ]
        try:
            for item in opened:
                self._restore(flow, item, saving)
            saving.end()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except Stopped:
            pass
        except BaseException as error:
            flow.stop(error)
        self._flow = None
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        over, self.stuck = True, any(thread.is_alive() for thread in threads)
        if flow.error is not None:
            raise flow.error

    def stop(self) -> bool:
        """End the run that is underway, from another thread or a signal's handler; it raises InterruptedRun. Returns
        whether the thread that runs is inside the model, where an exception of the handler ends it at once."""
        if self._flow is not None:
            self._flow.stop(InterruptedRun("interrupted; what was finished is kept, run again to go on"))
        return self._in_model

    @property
    def running(self) -> bool:
        return self._flow is not None

    def _open_all(
        self, flow: Flow, jobs: Iterable[Job], opened: Channel[Opened], tell: Callable[[Outcome], None]
    ) -> None:
        for job in jobs:
            flow.check()
            begin = time.perf_counter()
            try:
                found = self._open(job, flow)
            except Stopped:
                raise
            except Exception as error:
                tell(Outcome(job, "failed", reason_of(job, error)))
                continue
            if isinstance(found, Opened):
                found.outcome.decode_s = time.perf_counter() - begin
                opened.put(found)
            else:
                outcome, amount = found
                try:
                    tell(outcome)
                finally:
                    self.memory.release(amount, flow)
        opened.end()

    def _open(self, job: Job, flow: Flow) -> Opened | tuple[Outcome, int]:
        """The picture to restore; or the outcome of one that is done, and the memory that its look holds."""
        if job.refusal is not None:
            raise ImageError(f"{job.source}: {job.refusal}")
        done, stamp = self.skip_existing and job.target.exists(), None
        if not done:
            stamp = Stamp.of(job.source)
            done = stamp is not None and self.journal is not None and self.journal.is_done(job.target, stamp.sha256)
        if done:
            outcome = Outcome(job, "skipped")
            wanted = self.side is not None and self.side.wanted(job, done=True)
            return outcome, self._look_again(outcome, flow) if wanted else 0
        probe = probe_picture(job.source, self.limits)
        info = output_info(probe.info, job.target, self.restorer.alpha, self.restorer.spec.scale)
        amount = probe.decode_bytes + working_bytes(info, self.restorer.spec.tile_px * self.restorer.spec.scale)
        step = 0
        if self.side is not None and self.side.wanted(job, done=False):
            step, taken = self._look_size(probe.info, info, amount)
            amount += taken
        self.memory.acquire(amount, flow)
        try:
            picture = probe.open()
            if stamp is None:
                raise ImageError(f"{job.source}: it changed while it was read; run again when it is complete")
            stamp.check()
            rows = Watched(picture, info, step) if step else picture
            outcome = Outcome(job, "restored", info=info, input_sha256=stamp.sha256)
            streams = probe.decode_bytes < probe.info.bytes_decoded
            return Opened(outcome, rows, info, amount, stamp, streams)
        except BaseException:
            self.memory.release(amount, flow)
            raise

    def _look_size(self, before: PictureInfo, after: PictureInfo, amount: int) -> tuple[int, int]:
        pixel_bytes = sum(i.channels * int(i.dtype.itemsize) for i in (before, after))
        room = min(self.memory.total // 2, self.memory.total - amount)
        step = look_step(after.width, after.height, pixel_bytes, room)
        return step, look_bytes(after.width, after.height, pixel_bytes, step)

    def _look_again(self, outcome: Outcome, flow: Flow) -> int:
        """Look at a picture that is done, from its two files; the bytes that this holds until it is settled."""
        job = outcome.job
        probes = [probe_picture(path, self.limits) for path in (job.source, job.target)]
        step, taken = self._look_size(probes[0].info, probes[1].info, sum(p.decode_bytes for p in probes))
        amount = taken + sum(p.decode_bytes for p in probes)
        self.memory.acquire(amount, flow)
        try:
            source, target = map(Probe.open, probes)
            outcome.info, outcome.look = probes[1].info, look_at(source, target, step)
        except BaseException:
            self.memory.release(amount, flow)
            raise
        return amount

    def _restore(self, flow: Flow, item: Opened, saving: Channel[tuple[Opened, Bands]]) -> None:
        """The middle stage: bands go to the encoder as they become final; an error goes the same way."""
        bands: Bands = Channel(flow, BANDS_UNDERWAY)
        saving.put((item, bands))
        try:
            for band in self._infer(item):
                bands.put(band)
            if item.streams:
                item.stamp.check()
        except GaveUp:
            pass  # the encoder says why
        except Stopped:
            raise
        except Exception as error:
            bands.end(ImageError(reason_of(item.outcome.job, error)))
        else:
            bands.end()

    def _infer(self, item: Opened) -> Iterator[NDArray[Any]]:
        stream = self.restorer.stream(item.rows, item.outcome.work, item.info.dtype)
        while True:
            self._in_model = True
            try:
                band = next(stream, None)
            finally:
                self._in_model = False
            if band is None:
                return
            yield band

    def _save_all(self, flow: Flow, saving: Channel[tuple[Opened, Bands]], tell: Callable[[Outcome], None]) -> None:
        for item, bands in saving:
            outcome = item.outcome
            try:
                full = self._save(item, bands)
                tell(outcome)
            finally:
                self.memory.release(item.amount, flow)
            if full:
                raise ImageError(
                    f"{outcome.job.target.parent}: its disk is full; what was finished is kept, make room and run again"
                )

    def _save(self, item: Opened, bands: Bands) -> bool:
        """Write one picture; whether the disk is full."""
        outcome, target = item.outcome, item.outcome.job.target
        begin, waited = time.perf_counter(), [0.0]
        try:
            if target.parent not in self._cleaned:
                make_folder(target.parent)
                remove_dead_partials(target.parent)
                self._cleaned.add(target.parent)
            received = _timed(bands, waited)
            if isinstance(item.rows, Watched):
                received = item.rows.taken(received)
            save_picture(target, received, item.info, outcome.job.source)
            outcome.encode_s = time.perf_counter() - begin - waited[0]
            outcome.look = item.rows.look() if isinstance(item.rows, Watched) else None
        except Stopped:
            raise
        except Exception as error:
            bands.give_up()
            outcome.status, outcome.reason = "failed", reason_of(outcome.job, error)
            return is_full(error, target.parent)
        return False


def _timed(bands: Bands, waited: list[float]) -> Iterator[NDArray[Any]]:
    """The bands; the seconds that their reader waits for them are added up."""
    begin = time.perf_counter()
    for band in bands:
        waited[0] += time.perf_counter() - begin
        yield band
        begin = time.perf_counter()
    waited[0] += time.perf_counter() - begin
