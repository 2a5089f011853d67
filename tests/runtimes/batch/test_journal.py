"""The journal: two writers, kill -9, damage, older and newer files, and what makes an entry count."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from clusir.errors import ImageError, UsageError
from clusir.runtimes.batch.journal import JOURNAL_NAME, Journal, known_outputs, read_journal

DIGEST = "a" * 64
WRITER = """
import sys
from pathlib import Path
from clusir.runtimes.batch.journal import Journal
out = Path(sys.argv[1])
journal = Journal(out, "model", {})
for i in range(int(sys.argv[3])):
    target = out / f"{sys.argv[2]}{i}.png"
    target.write_bytes(b"done")
    journal.record(target, target, "restored", None, "a" * 64)
    print(i, flush=True)
"""


def put(out: Path, name: str, journal: Journal, data: bytes = b"done") -> Path:
    (out / name).write_bytes(data)
    journal.record(Path("in") / name, out / name, "restored", None, DIGEST)
    return out / name


def test_an_entry_counts_where_input_model_options_and_output_are_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "model", {"alpha": "keep"})
    target = put(tmp_path, "a.png", journal)
    journal.record(tmp_path / "b", tmp_path / "b.png", "failed", "a reason", DIGEST)
    assert journal.is_done(target, DIGEST)
    assert not journal.is_done(target, "b" * 64)
    assert not journal.is_done(tmp_path / "b.png", DIGEST)
    journal.close()
    for artefact, options, same in (
        ("model", {"alpha": "keep"}, True),
        ("other", {"alpha": "keep"}, False),
        ("model", {"alpha": "drop"}, False),
    ):
        again = Journal(tmp_path, artefact, options)
        assert again.is_done(target, DIGEST) is same
        again.close()
    fresh = Journal(tmp_path, "model", {"alpha": "keep"}, resume=False)
    assert not fresh.is_done(target, DIGEST)
    put(tmp_path, "a.png", fresh)
    assert fresh.is_done(target, DIGEST)  # in this run
    target.write_bytes(b"another size")
    assert not fresh.is_done(target, DIGEST)
    target.unlink()
    assert not fresh.is_done(target, DIGEST)
    fresh.close()


def test_a_model_that_changes_while_it_is_in_use_makes_no_entry_that_counts(tmp_path: Path) -> None:
    state = [True]
    journal = Journal(tmp_path, "model", {}, unchanged=lambda: state[0])
    assert journal.is_done(put(tmp_path, "a.png", journal), DIGEST)
    state[0] = False
    assert not journal.is_done(put(tmp_path, "b.png", journal), DIGEST)
    journal.close()


def test_names_and_reasons_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"bl\xfcte.png")
    journal = Journal(tmp_path, "model", {})
    target = put(tmp_path, name, journal)
    journal.record(target, tmp_path / "other.png", "failed", f"{target}: no", DIGEST)
    assert journal.is_done(target, DIGEST)
    journal.close()
    assert {entry["target"] for entry in read_journal(tmp_path)} == {name, "other.png"}
    assert list(known_outputs(tmp_path)) == [os.path.join(os.path.realpath(tmp_path), name)]


def test_two_processes_write_at_a_time_and_one_is_killed(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name, "300"], stdout=subprocess.PIPE)
        for name in ("first", "second")
    ]
    assert writers[0].stdout is not None
    for _ in range(50):
        writers[0].stdout.readline()
    writers[0].send_signal(signal.SIGKILL)
    said = 50 + len(writers[0].communicate()[0].splitlines())
    writers[1].communicate()
    assert writers[1].returncode == 0
    journal = Journal(tmp_path, "model", {})
    assert journal.notes == []
    assert all(journal.is_done(tmp_path / f"second{i}.png", DIGEST) for i in range(300))
    assert all(journal.is_done(tmp_path / f"first{i}.png", DIGEST) for i in range(said))
    journal.close()


@pytest.mark.parametrize("damage", [b"no database at all" * 100, None])
def test_a_damaged_journal_is_put_aside_in_one_line(tmp_path: Path, damage: bytes | None) -> None:
    journal = Journal(tmp_path, "model", {})
    for i in range(200):
        put(tmp_path, f"{i}.png", journal)
    journal.close()
    path = tmp_path / JOURNAL_NAME
    if damage is None:  # the page that the table begins on
        data = bytearray(path.read_bytes())
        data[4096:] = os.urandom(len(data) - 4096)
        path.write_bytes(data)
    else:
        path.write_bytes(damage)
    journal = Journal(tmp_path, "model", {})
    (note,) = journal.notes
    assert "damaged" in note
    assert "\n" not in note
    assert not journal.is_done(tmp_path / "1.png", DIGEST)
    assert journal.is_done(put(tmp_path, "1.png", journal), DIGEST)
    journal.close()
    assert (tmp_path / ".clusir-journal.damaged").is_file()


def test_older_and_newer_journals_are_named(tmp_path: Path) -> None:
    (tmp_path / ".clusir-journal.jsonl").write_text('{"target": "a.png"}\n')
    journal = Journal(tmp_path, "model", {})
    (note,) = journal.notes
    assert "earlier version is not read" in note
    journal.close()
    journal = Journal(tmp_path, "model", {})
    assert journal.notes == []  # said once
    journal.close()
    with sqlite3.connect(tmp_path / JOURNAL_NAME) as base:
        base.execute("PRAGMA user_version=99")
    base.close()
    with pytest.raises(UsageError, match="newer clusir"):
        Journal(tmp_path, "model", {})


def test_a_journal_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).mkdir()
    with pytest.raises(ImageError, match=r"journal .* cannot be written"):
        Journal(tmp_path, "model", {})
    assert read_journal(tmp_path) == []
    assert read_journal(tmp_path / "nowhere") == []
