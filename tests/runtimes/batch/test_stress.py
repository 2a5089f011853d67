"""A failure at any stage of the pipeline, at any picture: the run ends, and every picture is accounted for.

``CLUSIR_STRESS=300`` is the full count, with 200 pictures a run.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import models
import pytest
from PIL import Image

from clusir import atomic
from clusir.errors import ImageError, InterruptedRun
from clusir.runtimes.batch.flow import Channel, Flow, GaveUp, Stopped
from clusir.runtimes.batch.jobs import plan_jobs
from clusir.runtimes.batch.journal import Journal, read_journal
from clusir.runtimes.batch.memory import MemoryGate
from clusir.runtimes.batch.parts import Outcome
from clusir.runtimes.batch.pipeline import Pipeline
from clusir.runtimes.images.open import Probe
from clusir.runtimes.images.pillow_writer import PillowWriter
from clusir.runtimes.images.png_writer import PngWriter
from clusir.runtimes.restore.restorer import Restorer

ROUNDS = int(os.environ.get("CLUSIR_STRESS", "24"))
PICTURES = 200 if "CLUSIR_STRESS" in os.environ else 24
HANGS_S = 120.0  # far beyond any run
PICTURE_STAGES = ("open", "decode", "infer", "encode", "write", "rename")
RUN_STAGES = ("journal", "print", "signal", "interrupt", "jobs")
SIGNALLED = ((Probe, "open"), (Restorer, "infer"), (atomic.os, "replace"), (Journal, "_write"))
ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: OSError(errno.EIO, "Input/output error"),
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    lambda: MemoryError(),
    lambda: ValueError("injected"),
    lambda: ImageError("injected"),
    lambda: RuntimeError(),
    lambda: KeyError("injected"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for i in range(PICTURES):
        size = (20 + i % 7, 30) if i % 10 else (150, 90)  # some of several tiles, so that bands wait for each other
        hostile_files.photo(i, size).save(folder / f"{i:03}.{('png', 'jpg', 'webp', 'tif', 'bmp')[i % 5]}")
    return folder


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = models.save_identity(tmp_path_factory.mktemp("model") / "model.onnx")
    with Restorer(model, backend="ort", device="cpu", threads=1) as opened:
        yield opened


class Injection:
    """Raises once, at the ``nth`` call of one stage; or does ``act``, as a signal's handler would."""

    def __init__(self, nth: int, error: BaseException, act: Callable[[], Any] | None = None) -> None:
        self.nth, self.error, self.act, self.calls = nth, error, act, 0
        self._lock = threading.Lock()

    def due(self) -> bool:
        with self._lock:
            self.calls += 1
            return self.calls == self.nth

    def into(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def injected(*args: Any, **options: Any) -> Any:
            if self.due():
                if self.act is None:
                    raise self.error
                self.act()
            return real(*args, **options)

        monkeypatch.setattr(owner, name, injected)


def inject(stage: str, injection: Injection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    if stage == "encode":
        for writer in (PngWriter, PillowWriter):
            injection.into(monkeypatch, writer, "write")
        return
    owner, name = {
        "open": (pipeline_module(), "probe_picture"),
        "decode": (Probe, "open"),
        "infer": (Restorer, "infer"),
        "write": (atomic.os, "fsync"),
        "rename": (atomic.os, "replace"),
        "journal": (Journal, "_write"),
        "signal": SIGNALLED[injection.nth % len(SIGNALLED)],
        "interrupt": (Restorer, "infer"),
        "jobs": (pipeline, "_open"),
        "print": (None, ""),
    }[stage]
    if owner is not None:
        injection.into(monkeypatch, owner, name)


def pipeline_module() -> Any:
    return sys.modules["clusir.runtimes.batch.pipeline"]


def ended(work: Callable[[], None]) -> BaseException | None:
    """What ``work`` raised in a thread of its own; fails where it does not end."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(HANGS_S)
    assert not thread.is_alive(), "the run hangs"
    return raised[0] if raised else None


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_failure_anywhere_ends_in_order(
    photos: Path, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rng = random.Random(number)
    stages = (*PICTURE_STAGES, *RUN_STAGES)
    stage = stages[number % len(stages)]
    nth = rng.randint(1, PICTURES)
    error = rng.choice(ERRORS)()
    if stage == "journal":
        error = sqlite3.OperationalError("database or disk is full")
    if stage == "interrupt":
        error = KeyboardInterrupt()
    if stage == "jobs":
        error = SystemExit(7)
    if stage != "write":
        monkeypatch.setattr(atomic.os, "fsync", lambda handle: None)
    out = tmp_path / "out"
    jobs = plan_jobs([str(photos)], out)
    journal = Journal(out, "model", {})
    pipeline = Pipeline(restorer, journal, memory=MemoryGate(4 << 20))
    injection = Injection(nth, error, pipeline.stop if stage == "signal" else None)
    outcomes: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if stage == "print" and injection.due():
            raise injection.error

    with monkeypatch.context() as patched:
        inject(stage, injection, pipeline, patched)
        raised = ended(lambda: pipeline.run(jobs, report))
    journal.close()
    assert injection.calls >= min(nth, 1)
    told = {outcome.job.target: outcome for outcome in outcomes}
    assert len(told) == len(outcomes)  # each at most once
    for job in jobs:
        outcome = told.get(job.target)
        if outcome is not None and outcome.status == "restored":
            with Image.open(job.target) as image:
                image.load()
        else:
            assert not job.target.exists(), (stage, outcome)
        if outcome is not None and outcome.status == "failed":
            assert job.source.name in str(outcome.reason)
            assert "\n" not in str(outcome.reason)
    assert not [p.name for p in out.iterdir() if atomic.PARTIAL in p.name]
    recorded = {entry["target"] for entry in read_journal(out) if entry["status"] == "restored"}
    assert recorded <= {target.name for target, outcome in told.items() if outcome.status == "restored"}
    assert not pipeline.stuck
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if stage in PICTURE_STAGES:
        assert raised is None, raised
        assert len(told) == PICTURES
        assert len(failed) == (injection.calls >= nth)
    elif injection.calls >= nth:
        expected = {"journal": ImageError, "signal": InterruptedRun, "jobs": SystemExit}.get(stage, type(error))
        assert isinstance(raised, expected), (stage, raised)
        assert failed == []

    # What is left is done by the next run, and nothing else.
    journal = Journal(out, "model", {})
    again: list[Outcome] = []
    assert ended(lambda: Pipeline(restorer, journal).run(jobs, again.append)) is None
    journal.close()
    assert {outcome.status for outcome in again} <= {"restored", "skipped"}
    assert {outcome.job.target.name for outcome in again if outcome.status == "skipped"} == recorded
    assert len(again) == PICTURES


def test_many_failures_in_one_run(
    photos: Path, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that a failed picture held is given back: with room for one, the run would otherwise wait for ever."""
    rng = random.Random(0)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if rng.random() < 0.2:
                raise rng.choice(ERRORS)()
            return real(*args, **options)

        return call

    for owner, name in ((Probe, "open"), (Restorer, "infer"), (PngWriter, "write"), (atomic.os, "replace")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: None)
    outcomes: list[Outcome] = []
    gate = MemoryGate(2 << 20)
    jobs = plan_jobs([str(photos)], tmp_path / "out")
    assert ended(lambda: Pipeline(restorer, memory=gate).run(jobs, outcomes.append)) is None
    assert len(outcomes) == PICTURES
    assert 0 < sum(outcome.status == "failed" for outcome in outcomes) < PICTURES
    assert gate.used == 0
    assert {o.job.target for o in outcomes if o.status == "restored"} == set((tmp_path / "out").iterdir())


def test_a_full_disk_ends_the_run_and_says_so(
    photos: Path, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusir.runtimes.batch import trouble

    injection = Injection(7, OSError(errno.ENOSPC, "No space left on device"))
    injection.into(monkeypatch, atomic.os, "replace")
    monkeypatch.setattr(trouble.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 4096}))
    outcomes: list[Outcome] = []
    jobs = plan_jobs([str(photos)], tmp_path / "out")
    raised = ended(lambda: Pipeline(restorer).run(jobs, outcomes.append))
    assert str(raised) == f"{tmp_path / 'out'}: its disk is full; what was finished is kept, make room and run again"
    assert [o.status for o in outcomes[:7]] == ["restored"] * 6 + ["failed"]
    assert len(outcomes) <= 8  # the one that had been restored already was written


def test_a_thread_that_never_comes_back_is_left(
    photos: Path, restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module(), "_GRACE_S", 0.2)
    hold, held = threading.Event(), threading.Event()

    def stand(self: Any, item: Any, bands: Any) -> bool:
        held.set()
        hold.wait(HANGS_S)
        return False

    monkeypatch.setattr(Pipeline, "_save", stand)
    pipeline, outcomes = Pipeline(restorer), []
    stopper = threading.Thread(target=lambda: (held.wait(HANGS_S), pipeline.stop()))
    stopper.start()
    raised = ended(lambda: pipeline.run(plan_jobs([str(photos)], tmp_path / "out"), outcomes.append))
    assert isinstance(raised, InterruptedRun)
    assert pipeline.stuck
    hold.set()
    stopper.join()
    assert outcomes == []  # and what it has to say is not heard


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", range(3 if ROUNDS < 100 else 40))
def test_one_signal_ends_the_command(photos: Path, tmp_path: Path, number: int) -> None:
    model = models.save_identity(tmp_path / "model.onnx")
    rng = random.Random(number)
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", f"{script}from clusir.cli.run import main; main()"]
    command += [str(photos), "-o", str(tmp_path / "out"), "--model", str(model), "--json", "--threads", "1"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    for _ in range(rng.randint(1, PICTURES // 2)):
        run.stdout.readline()
    run.send_signal(rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
    rest, errors = run.communicate(timeout=HANGS_S)
    if b'"not_done": 0' not in rest:  # it was faster
        assert run.returncode == 130, errors
        assert errors.count(b"\n") == 1
        assert b"interrupted" in errors
    assert b"summary" in rest.splitlines()[-1]
    assert not [p.name for p in (tmp_path / "out").iterdir() if atomic.PARTIAL in p.name]


def test_every_hand_over_can_be_called_off() -> None:
    for wait in ("put", "get", "gate"):
        flow = Flow()
        channel: Channel[int] = Channel(flow, 1)
        gate = MemoryGate(1)
        channel.put(0) if wait == "put" else None
        gate.acquire(1, flow)
        waits: dict[str, Callable[[], Any]] = {
            "put": lambda channel=channel: channel.put(1),
            "get": lambda channel=channel: list(channel),
            "gate": lambda gate=gate, flow=flow: gate.acquire(1, flow),
        }
        timer = threading.Timer(0.05, flow.stop, (KeyboardInterrupt(),))
        timer.start()
        assert isinstance(ended(waits[wait]), Stopped), wait
        assert isinstance(flow.error, KeyboardInterrupt)
        flow.stop(ValueError())
        assert isinstance(flow.error, KeyboardInterrupt)  # the first is the one


def test_a_channel_ends_fails_and_is_left() -> None:
    flow = Flow()
    channel: Channel[int] = Channel(flow, 2)
    channel.put(1)
    channel.put(2)
    channel.end()
    assert list(channel) == [1, 2]
    broken: Channel[int] = Channel(flow, 1)
    broken.put(1)
    broken.end(ImageError("no"))  # although it is full
    with pytest.raises(ImageError, match="no"):
        next(iter(broken))
    left: Channel[int] = Channel(flow, 1)
    left.put(1)
    threading.Timer(0.05, left.give_up).start()
    assert isinstance(ended(lambda: left.put(2)), GaveUp)
    kept: Channel[int] = Channel(flow, 2)
    kept.put(1)
    kept.end()
    flow.stop(ValueError())
    assert list(kept) == [1]  # what only has to be written is
    with pytest.raises(Stopped):
        kept.put(2)


def test_an_encoder_that_fails_early_does_not_hold_the_model(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a picture of many bands, more than wait for the encoder: whoever puts them is told."""
    (tmp_path / "in").mkdir()
    hostile_files.photo(0, (1500, 40)).save(tmp_path / "in" / "a.png")
    hostile_files.photo(1, (40, 40)).save(tmp_path / "in" / "b.png")
    Injection(1, OSError(errno.EIO, "Input/output error")).into(monkeypatch, PngWriter, "write")
    outcomes: list[Outcome] = []
    jobs = plan_jobs([str(tmp_path / "in")], tmp_path / "out")
    assert ended(lambda: Pipeline(restorer).run(jobs, outcomes.append)) is None
    assert [o.status for o in outcomes] == ["failed", "restored"]
