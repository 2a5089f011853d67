"""Which files a folder or a glob stands for. One set of rules for both, and for watched ones:

hidden names, links to folders, and the output folder are not looked into; what clusir wrote (an output that a journal
knows, a comparison) is no input.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from clusir.runtimes.batch.journal import JOURNAL_NAME, known_outputs
from clusir.runtimes.images.formats import READ_SUFFIXES, unread_format
from clusir.runtimes.images.names import is_comparison

__all__ = ["Finder", "is_glob"]


def is_glob(text: str) -> bool:
    """Whether a name holds a wildcard."""
    return any(c in text for c in "*?[")


class Finder:
    """Finds pictures in folders. Every find is (path, reason why it cannot be read or None), in a stable order.

    ``passed`` are the files that are pictures by their names, and of formats that are not read here.
    """

    def __init__(self, output: Path, recursive: bool = True) -> None:
        self._recursive = recursive
        self._excluded = output.resolve()
        self.passed: set[Path] = set()
        self._written: dict[str, int] = known_outputs(output)

    def is_written(self, path: Path) -> bool:
        """Whether clusir wrote the file: an output as it left it, or a comparison."""
        if is_comparison(path):
            return True
        size = self._written.get(os.path.realpath(path)) if self._written else None
        try:
            return size is not None and path.stat().st_size == size
        except OSError:
            return False

    def walk(self, folder: Path) -> list[tuple[Path, str | None]]:
        """The pictures of a folder, by their suffixes."""
        found: list[tuple[Path, str | None]] = []
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            folders, files, refusal = self._list(here)
            if refusal is not None:
                found.append((here, refusal))
            # A folder that is called like a picture is named in the summary, not passed over.
            found += [(path, None) for path in (*folders, *files) if _looks_like_a_picture(path)]
            self.passed.update(path for path in files if unread_format(path.suffix.lower()) is not None)
            if self._recursive:
                waiting += [path for path in folders if self._may_enter(path)]
        return [item for item in sorted(found) if not self.is_written(item[0])]

    def match(self, pattern: str) -> tuple[Path, list[tuple[Path, str | None]]]:
        """The folder in front of the first wildcard, and the files that ``pattern`` (``*``, ``?``, ``[..]``, ``**``)
        stands for. Where its end is a wildcard they are pictures, by their suffixes."""
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if is_glob(part))
        root = Path(*parts[:fixed])
        found = dict(self._matches(root, list(parts[fixed:])))
        if parts[-1].endswith("*"):
            self.passed.update(p for p in found if unread_format(p.suffix.lower()) is not None)
            found = {p: why for p, why in found.items() if _looks_like_a_picture(p) or why is not None}
        return root, [item for item in sorted(found.items()) if not self.is_written(item[0])]

    def _matches(self, here: Path, parts: list[str]) -> Iterator[tuple[Path, str | None]]:
        part, rest = parts[0], parts[1:]
        if not is_glob(part):
            if rest:
                yield from self._matches(here / part, rest)
            elif (here / part).is_file() and not self._is_output(here):
                yield here / part, None
            return
        folders, files, refusal = self._list(here, hidden=part.startswith("."))
        if refusal is not None:
            yield here, refusal
        deep = part == "**" and self._recursive
        if not rest:
            yield from ((path, None) for path in files if deep or fnmatch.fnmatch(path.name, part))
        elif deep:
            yield from self._matches(here, rest)
        for path in folders:
            if not self._may_enter(path):
                continue
            if deep:
                yield from self._matches(path, parts)
            elif rest and fnmatch.fnmatch(path.name, part):
                yield from self._matches(path, rest)

    def _list(self, folder: Path, hidden: bool = False) -> tuple[list[Path], list[Path], str | None]:
        """(folders, files, why it cannot be read) of one folder, sorted."""
        folders: list[Path] = []
        files: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name == JOURNAL_NAME:
                        self._written |= known_outputs(folder)
                    if entry.name.startswith(".") and not hidden:
                        continue
                    (folders if _is_folder(entry) else files).append(folder / entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return [], [], None
        except OSError as error:
            return [], [], f"the folder cannot be read ({error.strerror or error})"
        return sorted(folders), sorted(files), None

    def _may_enter(self, folder: Path) -> bool:
        return not folder.is_symlink() and not self._is_output(folder)

    def _is_output(self, folder: Path) -> bool:
        return folder.resolve() == self._excluded


def _looks_like_a_picture(path: Path) -> bool:
    return path.suffix.lower() in READ_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
