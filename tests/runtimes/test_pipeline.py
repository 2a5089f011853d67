"""Folders: jobs, journal, a batch with every kind of bad file, and what an interruption leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from typing import Any

import hostile_files
import models
import numpy as np
import pytest
from PIL import Image

from clusir.errors import ImageError, UsageError
from clusir.runtimes.batch.jobs import plan_jobs
from clusir.runtimes.batch.journal import JOURNAL_NAME, Journal
from clusir.runtimes.batch.memory import MemoryGate, parse_size
from clusir.runtimes.batch.parts import Outcome
from clusir.runtimes.batch.pipeline import Pipeline
from clusir.runtimes.batch.watch import watch
from clusir.runtimes.images.open import open_picture
from clusir.runtimes.restore.restorer import Restorer


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_identity(tmp_path_factory.mktemp("identity") / "model.onnx")


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        hostile_files.photo(i, (20 + i % 7, 30)).save(folder / f"photo{i:03}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}")


def run(model: Path, inputs: list[str], output: Path, **options: Any) -> dict[str, Outcome]:
    done: dict[str, Outcome] = {}

    def report(outcome: Outcome) -> None:
        assert outcome.job.name not in done
        done[outcome.job.name] = outcome

    with Restorer(model, backend="ort", device="cpu", threads=1) as restorer:
        journal = Journal(output, restorer.files.sha256(), {}) if options.pop("journal", True) else None
        Pipeline(restorer, journal, **options).run(plan_jobs(inputs, output), report)
        if journal is not None:
            journal.close()
    return done


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Tests may run as root, who is never denied: let the system say no for one name."""
    real = Path.open

    def guarded(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)


def test_two_hundred_pictures_of_which_twelve_are_bad(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "in" / "deep" / "er", 94)
    write_photos(tmp_path / "in", 94)
    reasons = hostile_files.write_twelve(tmp_path / "in" / "deep")
    forbid(monkeypatch, "forbidden.png")
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out")
    assert len(done) == 200
    failed = {Path(k).name: o.reason for k, o in done.items() if o.status == "failed"}
    assert set(failed) == set(reasons)
    for name, part in reasons.items():
        reason = failed[name]
        assert reason is not None
        assert part in reason, reason
        assert name in reason
        assert "\n" not in reason
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != JOURNAL_NAME]
    assert len(written) == 188
    lines = [json.loads(line) for line in (tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()]
    assert len(lines) == 200
    assert sum(line["status"] == "restored" for line in lines) == 188
    source = tmp_path / "in" / "deep" / "er" / "photo004.png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / "deep" / "er" / "photo004.png")), np.asarray(Image.open(source))
    )


@pytest.mark.parametrize("name", sorted(hostile_files.more_hostile()))
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(hostile_files.more_hostile()[name])
    with pytest.raises(ImageError) as caught:
        open_picture(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_journal_resumes_and_notices_every_change(identity: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 6)
    statuses = lambda: sorted(o.status for o in run(identity, [str(tmp_path / "in")], tmp_path / "out").values())  # noqa: E731
    assert statuses() == ["restored"] * 6
    assert statuses() == ["skipped"] * 6
    hostile_files.photo(99).save(tmp_path / "in" / "photo000.png")  # another input
    (tmp_path / "out" / "photo001.jpg").unlink()  # an output that is gone
    (tmp_path / "out" / "photo002.webp").write_bytes(b"x")  # an output that was changed
    assert statuses() == ["restored"] * 3 + ["skipped"] * 3
    other = models.save_identity(tmp_path / "other.onnx", scale=0.5)
    assert [o.status for o in run(other, [str(tmp_path / "in")], tmp_path / "out").values()] == ["restored"] * 6


def test_journal_survives_a_torn_line(tmp_path: Path) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    hostile_files.photo().save(source)
    journal = Journal(out, "model", {})
    (out / "a.png").write_bytes(b"done")
    (out / "b.png").write_bytes(b"done")
    journal.record(source, out / "a.png", "restored")
    journal.close()
    with journal.path.open("ab") as stream:
        stream.write(b'{"target": "b.png", "status": "rest')
    journal = Journal(out, "model", {})
    assert journal.is_done(source, out / "a.png")
    assert not journal.is_done(source, out / "b.png")
    journal.record(source, out / "b.png", "restored")
    journal.close()
    journal = Journal(out, "model", {})
    assert journal.is_done(source, out / "b.png")
    assert not Journal(out, "model", {"alpha": "drop"}).is_done(source, out / "a.png")
    assert not Journal(out, "model", {}, resume=False).is_done(source, out / "a.png")


def test_skip_existing(identity: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo001.jpg").write_bytes(b"whatever")
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out", skip_existing=True, journal=False)
    assert sorted(o.status for o in done.values()) == ["restored", "restored", "skipped"]
    assert (tmp_path / "out" / "photo001.jpg").read_bytes() == b"whatever"


def test_full_disk_fails_one_picture_and_leaves_no_half_file(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusir.runtimes.images import png_writer

    write_photos(tmp_path / "in", 8)
    hostile_files.photo(0, (300, 40)).save(tmp_path / "in" / "tall.png")
    real = png_writer.PngWriter.write
    calls = []

    def full(self: Any, band: Any) -> None:
        calls.append(1)
        if self._above.size == 120:  # the tall one is 40 pixels wide
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, band)

    monkeypatch.setattr(png_writer.PngWriter, "write", full)
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out")
    failed = [o.reason for o in done.values() if o.status == "failed"]
    assert len(failed) == 1
    assert "No space left" in str(failed[0])
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if "partial" in p.name or "tall" in p.name) == []


def test_interruption_stops_cleanly_and_resumes(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "in", 12)
    real = Restorer.stream
    calls = []

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Restorer, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(identity, [str(tmp_path / "in")], tmp_path / "out")
    monkeypatch.setattr(Restorer, "stream", real)
    assert len([p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")]) == 4
    assert [p for p in (tmp_path / "out").iterdir() if "partial" in p.name] == []
    statuses = [o.status for o in run(identity, [str(tmp_path / "in")], tmp_path / "out").values()]
    assert sorted(statuses) == ["restored"] * 8 + ["skipped"] * 4


def test_a_journal_that_cannot_be_written_ends_the_run(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "in", 12)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "record", full)
    with pytest.raises(ImageError, match="journal"):
        run(identity, [str(tmp_path / "in")], tmp_path / "out")


def test_jobs_keep_structure_and_refuse_collisions(tmp_path: Path) -> None:
    write_photos(tmp_path / "in" / "sub", 2)
    write_photos(tmp_path / "in", 1)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.png").write_text("x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    out = tmp_path / "in" / "out"
    out.mkdir()
    (out / "earlier.png").write_text("x")
    targets = [j.target.relative_to(out).as_posix() for j in plan_jobs([str(tmp_path / "in")], out)]
    assert targets == ["photo000.png", "sub/photo000.png", "sub/photo001.jpg"]
    assert len(plan_jobs([str(tmp_path / "in")], out, recursive=False)) == 1
    pattern = str(tmp_path / "in" / "**" / "*.png")
    globbed = [j.target.relative_to(out).as_posix() for j in plan_jobs([pattern], out)]
    assert "sub/photo000.png" in globbed
    both = plan_jobs([str(tmp_path / "in" / "photo000.png"), str(tmp_path / "in" / "sub" / "photo000.png")], out)
    assert [j.refusal is None for j in both] == [True, False]
    onto_itself = plan_jobs([str(tmp_path / "in" / "photo000.png")], tmp_path / "in" / "photo000.png")
    assert "is an input" in str(onto_itself[0].refusal)
    assert plan_jobs([str(tmp_path / "in" / "photo000.png")], tmp_path / "x.tif")[0].target == tmp_path / "x.tif"
    assert {j.target.suffix for j in plan_jobs([str(tmp_path / "in")], out, suffix=".webp")} == {".webp"}
    with pytest.raises(UsageError, match="nothing matches"):
        plan_jobs([str(tmp_path / "*.nothing")], out)
    with pytest.raises(UsageError):
        plan_jobs([], out)


def test_gif_becomes_png(identity: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    hostile_files.photo().save(tmp_path / "in" / "still.gif")
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out")
    assert [o.job.target.name for o in done.values()] == ["still.png"]
    assert (tmp_path / "out" / "still.png").is_file()


def test_watch_hands_out_what_stopped_growing(tmp_path: Path) -> None:
    first = tmp_path / "a.png"
    first.write_bytes(b"1")
    steps: list[Any] = [
        lambda: first.write_bytes(b"12"),  # still growing
        lambda: None,
        lambda: (tmp_path / "b.png").write_bytes(b"new"),
        lambda: None,
        lambda: first.write_bytes(b"changed later"),
        lambda: None,
    ]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen = []
    with contextlib.suppress(KeyboardInterrupt):
        for batch in watch(lambda: plan_jobs([str(tmp_path)], tmp_path / "out"), sleep=sleep):
            seen.append([j.source.name for j in batch])  # noqa: PERF401
    assert seen == [["a.png"], ["b.png"], ["a.png"]]


def test_memory_gate_and_sizes(identity: Path, tmp_path: Path) -> None:
    assert [parse_size(t) for t in ("1500M", "2G", "1.5GiB", "4096")] == [1500 << 20, 2 << 30, 3 << 29, 4096]
    for bad in ("", "-1M", "0", "many", "1X"):
        with pytest.raises(UsageError):
            parse_size(bad)
    write_photos(tmp_path / "in", 4)
    Image.fromarray(np.zeros((900, 900, 3), np.uint8)).save(tmp_path / "in" / "large.jpg")
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out", memory=MemoryGate(6 << 20))
    failed = {Path(k).name: o.reason for k, o in done.items() if o.status == "failed"}
    assert set(failed) == {"large.jpg"}
    assert "--max-memory" in str(failed["large.jpg"])
