"""Folders: jobs, journal, a batch with every kind of bad file, and what an interruption leaves behind."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Any

import hostile_files
import models
import numpy as np
import pytest
from PIL import Image

from clusir.errors import ImageError, UsageError
from clusir.runtimes.batch.jobs import plan_jobs
from clusir.runtimes.batch.journal import JOURNAL_NAME, Journal, read_journal
from clusir.runtimes.batch.memory import MemoryGate, parse_size
from clusir.runtimes.batch.parts import Outcome
from clusir.runtimes.batch.pipeline import Pipeline
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

    report = options.pop("report", report)
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
    entries = read_journal(tmp_path / "out")
    assert len(entries) == 200
    assert sum(entry["status"] == "restored" for entry in entries) == 188
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
    real, calls = Journal._write, []

    def full(self: Any, row: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise sqlite3.OperationalError("database or disk is full")
        real(self, row)

    monkeypatch.setattr(Journal, "_write", full)
    done: list[Outcome] = []
    with pytest.raises(ImageError, match=r"journal .*disk is full\); what was finished is kept"):
        run(identity, [str(tmp_path / "in")], tmp_path / "out", report=done.append)
    assert [o.status for o in done] == ["restored"] * 4  # the fourth is there, and will be done again
    assert len(read_journal(tmp_path / "out")) == 3


def test_gif_becomes_png(identity: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    hostile_files.photo().save(tmp_path / "in" / "still.gif")
    done = run(identity, [str(tmp_path / "in")], tmp_path / "out")
    assert [o.job.target.name for o in done.values()] == ["still.png"]
    assert (tmp_path / "out" / "still.png").is_file()


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
