"""What has been restored, with what, from what: so that a run that was killed goes on where it stopped.

One row per picture in ``.clusir-journal.sqlite3`` of the output folder, written behind the picture itself and its side
outputs. SQLite keeps it whole through ``kill -9``, and lets several processes write to it. An entry is believed only
where the output is there in the size that it says.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from clusir.errors import ImageError, UsageError
from clusir.runtimes.images.names import as_text

__all__ = ["JOURNAL_NAME", "Journal", "known_outputs", "read_journal"]

JOURNAL_NAME = ".clusir-journal.sqlite3"
_TEXT_NAME = ".clusir-journal.jsonl"
_VERSION = 1
_WAIT_S = 30.0  # for another process's write, which takes milliseconds
_TABLE = """CREATE TABLE IF NOT EXISTS pictures (
    target BLOB PRIMARY KEY, source BLOB NOT NULL, status TEXT NOT NULL, reason TEXT, artefact TEXT NOT NULL,
    options TEXT NOT NULL, input_sha256 TEXT, bytes INTEGER) WITHOUT ROWID"""
_COLUMNS = ("target", "source", "status", "reason", "artefact", "options", "input_sha256", "bytes")


class Journal:
    """The journal of one output folder. ``artefact`` is the model's digest, ``options`` whatever else decides the
    pixels of an output; an entry counts only where both, and the input's digest, are the same. ``resume`` False
    forgets what was done before. ``unchanged`` says whether the model's files are still those of the digest.

    ``notes`` are lines to show: what became of a journal that could not be used. Raises ImageError where it cannot be
    written, UsageError where a newer version wrote it."""

    def __init__(
        self,
        folder: Path,
        artefact: str,
        options: dict[str, Any],
        resume: bool = True,
        unchanged: Callable[[], bool] = lambda: True,
    ) -> None:
        self.path = folder / JOURNAL_NAME
        self.notes: list[str] = []
        self._folder, self._resume, self._unchanged = folder, resume, unchanged
        self._run = (artefact, json.dumps(options, sort_keys=True))
        self._lock = threading.Lock()
        self._mine: set[bytes] = set()
        with self._wording():
            folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() and (folder / _TEXT_NAME).exists():
                self.notes.append(
                    f"{folder / _TEXT_NAME}: the journal of an earlier version is not read; pictures are done once "
                    "more (--skip-existing leaves them alone), and it may be deleted"
                )
            try:
                self._base = self._open()
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # locked, full, not allowed: its contents are well
                    raise
                aside = self.path.with_suffix(".damaged")
                os.replace(self.path, aside)
                self.path.with_name(f"{JOURNAL_NAME}-journal").unlink(missing_ok=True)
                self.notes.append(f"{self.path}: damaged ({error}); kept as {aside.name}, pictures are done again")
                self._base = self._open()

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            # The pictures are forced to disk, this is not: a killed process loses nothing by it, and after a power cut
            # the worst is a journal that is put aside. Four forced writes a picture would cost more than its encoding.
            base.execute("PRAGMA synchronous=OFF")
            version = base.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise UsageError(
                    f"journal {self.path}: written by a newer clusir; use that one, or another output folder"
                )
            if version < _VERSION:
                base.execute("BEGIN IMMEDIATE")
                base.execute(_TABLE)
                base.execute(f"PRAGMA user_version={_VERSION}")
                base.execute("COMMIT")
            base.execute("SELECT count(*) FROM pictures").fetchone()
        except BaseException:
            base.close()
            raise
        return base

    @contextmanager
    def _wording(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(
                f"journal {self.path}: cannot be written ({reason}); what was finished is kept, make room or look at "
                "the folder and run again"
            ) from error

    def _key(self, target: Path) -> bytes:
        return os.fsencode(target.relative_to(self._folder).as_posix())

    def is_done(self, target: Path, input_sha256: str) -> bool:
        """Whether ``target`` is there and is what this run would make of an input of that digest."""
        key = self._key(target)
        with self._lock, self._wording():
            if not self._resume and key not in self._mine:
                return False
            row = self._base.execute(
                "SELECT artefact, options, input_sha256, bytes FROM pictures WHERE target=? AND status='restored'",
                (key,),
            ).fetchone()
        try:
            return row is not None and row == (*self._run, input_sha256, target.stat().st_size)
        except OSError:
            return False

    def record(
        self, source: Path, target: Path, status: str, reason: str | None = None, input_sha256: str | None = None
    ) -> None:
        """Write down what became of a picture. ``status`` is ``restored`` or ``failed``,
        ``input_sha256`` the digest of the bytes that were read."""
        key = self._key(target)
        with self._lock, self._wording():
            size = target.stat().st_size if status == "restored" else None
            artefact, options = self._run
            if not self._unchanged():
                artefact = "changed while it was in use"
            said = None if reason is None else as_text(reason)
            row = (key, os.fsencode(source), status, said, artefact, options, input_sha256, size)
            self._write(row)
            self._mine.add(key)

    def _write(self, row: tuple[Any, ...]) -> None:
        self._base.execute(f"REPLACE INTO pictures VALUES ({','.join('?' * len(row))})", row)

    def close(self) -> None:
        with self._lock:
            self._base.close()


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's journal, as text; empty where there is none that can be read."""
    path = (folder / JOURNAL_NAME).absolute()
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as base:
            rows = base.execute(f"SELECT {','.join(_COLUMNS)} FROM pictures").fetchall()
    except sqlite3.Error:
        return []
    entries = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return [e | {name: os.fsdecode(e[name]) for name in ("target", "source")} for e in entries]


def known_outputs(folder: Path) -> dict[str, int]:
    """The outputs that a folder's journal knows: real path to the bytes each had."""
    real = os.path.realpath(folder)
    return {os.path.join(real, e["target"]): e["bytes"] for e in read_journal(folder) if e["status"] == "restored"}
