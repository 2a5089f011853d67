"""What has been restored, with what, from what: so that a run that was killed goes on where it stopped.

One JSON line per finished picture in ``.clusir-journal.jsonl`` of the output folder, written behind the picture itself
and forced to disk. A line torn by ``kill -9`` is ignored, and its picture done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from clusir.errors import ImageError

__all__ = ["JOURNAL_NAME", "Journal", "file_sha256"]

JOURNAL_NAME = ".clusir-journal.jsonl"


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Journal:
    """The journal of one output folder. ``artefact`` is the model's digest, ``options`` whatever else decides the
    pixels of an output; an entry counts only where both, and the input's digest, are the same. ``resume`` False
    forgets what was done before."""

    def __init__(self, folder: Path, artefact: str, options: dict[str, Any], resume: bool = True) -> None:
        self.path = folder / JOURNAL_NAME
        self._folder = folder
        self._run = {"artefact": artefact, "options": options}
        self._done: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._load()
            self._stream = self.path.open("ab")
            if self._stream.tell() and not self._ends_in_newline():
                self._stream.write(b"\n")
        except OSError as error:
            raise ImageError(f"journal {self.path}: cannot be written ({error.strerror or error})") from error

    def _load(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                    self._done[str(entry["target"])] = dict(entry)
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue

    def _ends_in_newline(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) == b"\n"

    def _key(self, target: Path) -> str:
        return target.relative_to(self._folder).as_posix()

    def is_done(self, source: Path, target: Path) -> bool:
        """Whether ``target`` is there and is what this run would make of ``source``. Raises OSError."""
        entry = self._done.get(self._key(target))
        if entry is None or entry.get("status") != "restored" or not target.is_file():
            return False
        same = all(entry.get(k) == v for k, v in self._run.items()) and entry.get("bytes") == target.stat().st_size
        return same and entry.get("input_sha256") == file_sha256(source)

    def record(self, source: Path, target: Path, status: str, reason: str | None = None) -> None:
        """Append a line and force it to disk. ``status`` is ``restored`` or ``failed``."""
        entry: dict[str, Any] = {"target": self._key(target), "source": str(source), "status": status, **self._run}
        if status == "restored":
            entry |= {"input_sha256": file_sha256(source), "bytes": target.stat().st_size}
        if reason is not None:
            entry["reason"] = reason
        # ASCII: file names may hold bytes that are not text, and JSON escapes keep them.
        self._stream.write((json.dumps(entry, sort_keys=True) + "\n").encode("ascii"))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._done[entry["target"]] = entry

    def close(self) -> None:
        self._stream.close()
