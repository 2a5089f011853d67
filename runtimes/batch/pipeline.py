"""Many pictures through one model: decode, infer and encode at the same time, one bad file never stops the rest.

Three stages: a thread that opens and decodes the next picture, the caller's thread that restores, a thread that encodes
and writes. What is between them is bounded: one decoded picture waits at most, a few bands of rows are on their way to
the encoder, and :class:`clusir.runtimes.batch.memory.MemoryGate` counts the bytes of all.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.batch.jobs import Job
from clusir.runtimes.batch.journal import Journal
from clusir.runtimes.batch.memory import MemoryGate
from clusir.runtimes.batch.parts import BANDS_UNDERWAY, Encoding, Interrupted, Look, LookTaker, Opened, Outcome
from clusir.runtimes.images.atomic import remove_dead_partials
from clusir.runtimes.images.files import output_info, probe_picture, save_picture
from clusir.runtimes.images.picture import Limits, PictureInfo
from clusir.runtimes.restore.restorer import Restorer

__all__ = ["Look", "Outcome", "Pipeline"]


class Pipeline:
    """Runs jobs through a :class:`Restorer`.

    ``journal`` (may be None) skips what it knows as done and records what gets done; ``skip_existing`` skips whatever
    has an output. ``memory`` bounds the bytes of all pictures underway. ``looks`` keeps before and after.
    """

    def __init__(
        self,
        restorer: Restorer,
        journal: Journal | None = None,
        skip_existing: bool = False,
        memory: MemoryGate | None = None,
        limits: Limits | None = None,
        looks: bool = False,
    ) -> None:
        self.restorer, self.journal, self.skip_existing = restorer, journal, skip_existing
        self.memory = memory or MemoryGate(4 << 30)
        self.limits, self.looks = limits or Limits(), looks
        self._stop = threading.Event()
        self._cleaned: set[Any] = set()

    def run(self, jobs: Iterable[Job], report: Callable[[Outcome], None]) -> None:
        """Do all ``jobs``; ``report`` is called once for each, from any thread, one call at a time.

        A failed job is an Outcome, not an exception; only what makes all further work senseless (the runtime is gone,
        the journal cannot be written, KeyboardInterrupt) is raised, after the pictures underway are dropped cleanly.
        """
        self._stop.clear()
        lock = threading.Lock()

        def tell(outcome: Outcome) -> None:
            with lock:
                if self.journal is not None and outcome.status != "skipped":
                    _record(self.journal, outcome)
                report(outcome)

        opened: queue.Queue[Opened | None] = queue.Queue(maxsize=1)
        encoding: queue.Queue[Encoding | None] = queue.Queue(maxsize=1)
        failures: list[BaseException] = []
        decoder = threading.Thread(target=self._decode_all, args=(jobs, opened, tell, failures), daemon=True)
        encoder = threading.Thread(target=self._encode_all, args=(encoding, tell, failures), daemon=True)
        decoder.start()
        encoder.start()
        try:
            while not failures:
                item = _get(opened, self._stop)
                if item is None:
                    break
                self._restore(item, encoding)
        except BaseException:
            self._stop.set()
            raise
        finally:
            encoding.put(None)  # the encoder takes what it is given until this, whatever happens
            encoder.join()
            self._stop.set()
            decoder.join()
        if failures:
            raise failures[0]

    def _decode_all(
        self,
        jobs: Iterable[Job],
        opened: queue.Queue[Opened | None],
        tell: Callable[[Outcome], None],
        failures: list[BaseException],
    ) -> None:
        try:
            for job in jobs:
                if self._stop.is_set():
                    return
                begin = time.perf_counter()
                try:
                    item = self._open(job)
                except ImageError as error:
                    tell(Outcome(job, "failed", str(error)))
                    continue
                if item is None:
                    tell(Outcome(job, "skipped"))
                    continue
                item.outcome.decode_s = time.perf_counter() - begin
                _put(opened, item, self._stop)
            _put(opened, None, self._stop)
        except BaseException as error:
            failures.append(error)
            self._stop.set()

    def _open(self, job: Job) -> Opened | None:
        if job.refusal is not None:
            raise ImageError(f"{job.source}: {job.refusal}")
        try:
            if self.skip_existing and job.target.exists():
                return None
            if self.journal is not None and self.journal.is_done(job.source, job.target):
                return None
        except OSError as error:
            raise ImageError(f"{job.source}: it cannot be read ({error.strerror or error})") from error
        probe = probe_picture(job.source, self.limits)
        info = output_info(probe.info, job.target, self.restorer.alpha, self.restorer.spec.scale)
        amount = probe.decode_bytes + _working_bytes(info, self.restorer.spec.tile_px * self.restorer.spec.scale)
        try:
            self.memory.acquire(amount, self._stop)
        except ImageError as error:
            raise ImageError(f"{job.source}: {error}") from error
        try:
            return Opened(job, probe.open(), info, amount, Outcome(job, "restored", info=info))
        except BaseException:
            self.memory.release(amount)
            raise

    def _restore(self, item: Opened, encoding: queue.Queue[Encoding | None]) -> None:
        """The middle stage: bands go to the encoder as they become final; an error goes the same way."""
        sink = Encoding(item, LookTaker(item.picture) if self.looks else None)
        encoding.put(sink)
        try:
            for band in self.restorer.stream(item.picture, item.outcome.work, item.info.dtype):
                if sink.gave_up.is_set():
                    break
                sink.bands.put(band)
            sink.bands.put(None)
        except ClusirError as error:
            text = str(error)
            named = text.startswith(str(item.job.source))
            sink.bands.put(ImageError(text if named else f"{item.job.source}: {text}"))
        except BaseException:
            sink.bands.put(Interrupted())
            raise

    def _encode_all(
        self, encoding: queue.Queue[Encoding | None], tell: Callable[[Outcome], None], failures: list[BaseException]
    ) -> None:
        while (sink := encoding.get()) is not None:
            try:
                if not failures:
                    self._encode(sink, tell)
            except Interrupted:
                pass
            except BaseException as error:
                failures.append(error)
                self._stop.set()
            finally:
                sink.drain()
                self.memory.release(sink.item.amount)

    def _encode(self, sink: Encoding, tell: Callable[[Outcome], None]) -> None:
        item, outcome = sink.item, sink.item.outcome
        begin = time.perf_counter()
        try:
            folder = item.job.target.parent
            if folder not in self._cleaned:
                _make_folder(folder)
                remove_dead_partials(folder)
                self._cleaned.add(folder)
            save_picture(item.job.target, sink.received(), item.info, item.job.source)
            outcome.encode_s = time.perf_counter() - begin - sink.waited_s
            outcome.look = sink.taker.look() if sink.taker is not None else None
        except ImageError as error:
            outcome.status, outcome.reason = "failed", str(error)
        tell(outcome)


def _working_bytes(info: PictureInfo, tile_px: int) -> int:
    """What a picture takes besides its decoded pixels: window, accumulator, bands underway; and all of it once more
    where the format is encoded in one piece."""
    rows = min(info.height, tile_px)
    row_bytes = info.width * info.channels * info.dtype.itemsize
    working = rows * (info.width * 3 * 4 * 3 + row_bytes * (4 + BANDS_UNDERWAY) * 2)
    whole = info.width * info.height * 4 if info.format in ("JPEG", "WEBP", "BMP") else 0
    return working + whole * (3 if info.format == "WEBP" else 1)


def _make_folder(folder: Any) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: the folder cannot be made ({error.strerror or error})") from error


def _record(journal: Journal, outcome: Outcome) -> None:
    try:
        journal.record(outcome.job.source, outcome.job.target, outcome.status, outcome.reason)
    except OSError as error:
        raise ImageError(f"journal {journal.path}: cannot be written ({error.strerror or error})") from error


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while True:
        try:
            target.put(item, timeout=0.2)
        except queue.Full:
            if stop.is_set() and item is not None:
                return
        else:
            return


def _get(source: queue.Queue[Any], stop: threading.Event) -> Any:
    while True:
        try:
            return source.get(timeout=0.2)
        except queue.Empty:
            if stop.is_set():
                return None
