"""From what the user typed (files, folders, globs, an output) to a list of jobs, every name of which is reserved."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clusir.errors import ImageError, UsageError
from clusir.runtimes.batch.find import Finder, is_glob
from clusir.runtimes.images.formats import READ_SUFFIXES, WRITE_SUFFIXES
from clusir.runtimes.images.names import COMPARISON_SUFFIX, is_comparison

__all__ = ["Job", "is_file_output", "is_glob", "pixels_of", "plan_jobs"]

_FEW_JOBS = 16  # whose headers are read before anything is opened
_NAME_BYTES = 255  # of the common file systems
_OWN = "is an input; choose another output with -o"


@dataclass(frozen=True)
class Job:
    """One picture: where it comes from, where it goes, what it is called in lists. ``refusal`` is a reason known
    before it is opened; ``comparison`` is reserved for before | after, where that is wanted."""

    source: Path
    target: Path
    name: str
    refusal: str | None = None
    comparison: Path | None = None


def pixels_of(jobs: Sequence[Job]) -> int | None:
    """How many pixels the pictures of ``jobs`` have, by their headers; None where they are many. What cannot be read
    counts for nothing: restoring it says why."""
    from clusir.runtimes.images.files import probe_picture

    if len(jobs) > _FEW_JOBS:
        return None
    total = 0
    for job in jobs:
        with contextlib.suppress(ImageError, OSError):
            info = probe_picture(job.source).info
            total += info.width * info.height
    return total


def is_file_output(inputs: Sequence[str], output: Path) -> bool:
    """Whether ``-o`` names a file: one input that is not a folder or glob, and an output with a picture's suffix."""
    single = len(inputs) == 1 and not Path(inputs[0]).is_dir() and (Path(inputs[0]).exists() or not is_glob(inputs[0]))
    return single and not output.is_dir() and output.suffix.lower() in WRITE_SUFFIXES


def plan_jobs(
    inputs: Sequence[str],
    output: Path,
    recursive: bool = True,
    suffix: str | None = None,
    *,
    compare: bool = False,
    waiting: bool = False,
    passed: set[Path] | None = None,
) -> list[Job]:
    """The jobs of ``inputs`` in a stable order.

    A file goes to ``output`` (or into it, where it is a folder); a folder's pictures keep their paths below it; a glob
    (``*``, ``?``, ``[..]``, ``**``) stands for the files it matches, by the rules of
    :class:`clusir.runtimes.batch.find.Finder`. ``suffix`` (``.png``) changes the format of all; GIF always becomes PNG.
    ``compare`` reserves names for comparisons as well. ``waiting``: what is not there yet is no error. Raises
    UsageError where an input is not there, a glob matches nothing, or the output is a file and has to be a folder.

    ``passed`` gets the pictures of formats that are not read.
    """
    if not inputs:
        raise UsageError("no pictures given; name files, folders or globs")
    if suffix is not None and suffix not in WRITE_SUFFIXES:
        raise UsageError(f"format {suffix!r} is not one of {', '.join(WRITE_SUFFIXES)}")
    missing = [text for text in inputs if not is_glob(text) and not os.path.lexists(text)]
    if missing and not waiting:
        raise UsageError(f"{', '.join(missing)}: no such file or folder")
    if is_file_output(inputs, output):
        return _named(_checked([Job(Path(inputs[0]), output, inputs[0])]), compare)
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {output}: it is a file; several pictures, or a folder, need a folder")
    if not output.is_dir():
        _refuse_file_name(inputs, output)
    jobs: list[Job] = []
    finder = Finder(output, recursive)
    if passed is not None:
        finder.passed = passed
    for text in inputs:
        for path, root, refusal in _expand(text, output, finder, waiting):
            jobs.append(_job(path, root, output, suffix, refusal))
    if not jobs and not waiting and all(os.path.isfile(text) for text in inputs):
        raise UsageError(f"{', '.join(inputs)}: written by clusir itself, into {output}; choose another output with -o")
    checked = _checked(jobs)
    if checked and all(job.refusal is not None and job.refusal.endswith(_OWN) for job in checked):
        raise UsageError(f"{checked[0].source}: {checked[0].refusal}")
    return _named(checked, compare)


def _refuse_file_name(inputs: Sequence[str], output: Path) -> None:
    """Refuse a name that was meant for a file where a folder would be made of it."""
    suffix = output.suffix.lower()
    if len(inputs) == 1 and Path(inputs[0]).is_file() and suffix[1:].isalpha():
        raise UsageError(
            f"output {output}: {suffix} is not one of {', '.join(WRITE_SUFFIXES)}; for a folder of that name, "
            "make it first"
        )
    if suffix in READ_SUFFIXES:
        raise UsageError(f"output {output}: a picture's name for what has to be a folder; leave out {output.suffix}")


def _expand(text: str, output: Path, finder: Finder, waiting: bool) -> Iterable[tuple[Path, Path, str | None]]:
    """(path, folder that its output path is relative to, reason why it cannot be read)."""
    path = Path(text)
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise UsageError(f"output {output}: it is the input folder; choose another output with -o")
        return [(found, path, refusal) for found, refusal in finder.walk(path)]
    if os.path.lexists(text):
        return [] if finder.is_written(path) else [(path, path.parent, None)]
    if not is_glob(text):
        return []
    root, matches = finder.match(text)
    if not matches and not waiting:
        raise UsageError(f"{text}: nothing matches")
    return [(found, root, refusal) for found, refusal in matches]


def _job(source: Path, root: Path, output: Path, suffix: str | None, refusal: str | None) -> Job:
    try:
        relative = source.relative_to(root)
    except ValueError:
        relative = Path(source.name)
    if ".." in relative.parts:
        relative = Path(source.name)
    target = output / relative
    if suffix is not None:
        target = target.with_suffix(suffix)
    elif target.suffix.lower() == ".gif":
        target = target.with_suffix(".png")
    if len(os.fsencode(target.name)) > _NAME_BYTES:
        refusal = refusal or f"the name of its output, {target.name}, is too long for a file system"
    return Job(source, target, str(source), refusal)


def _key(path: Path) -> str:
    return os.path.normcase(path.resolve())


def _checked(jobs: list[Job]) -> list[Job]:
    """Refuse, one by one, jobs that would overwrite their own input or each other's output."""
    seen: dict[str, Job] = {}
    sources = {_key(job.source) for job in jobs}
    checked = []
    for job in jobs:
        target = _key(job.target)
        refusal = job.refusal
        if target in sources:
            refusal = refusal or f"the output {job.target} {_OWN}"
        elif target in seen:
            if _key(seen[target].source) == _key(job.source):
                continue  # the same file named twice
            refusal = refusal or f"its output {job.target} is that of {seen[target].source} too; choose another name"
        else:
            seen[target] = job
        checked.append(replace(job, refusal=refusal))
    return checked


def _named(jobs: list[Job], compare: bool) -> list[Job]:
    """Reserve a name for every comparison: no picture's, no other comparison's, and of no file that is not one."""
    if not compare:
        return jobs
    taken = {_key(job.target) for job in jobs} | {_key(job.source) for job in jobs}
    named = []
    for job in jobs:
        if job.refusal is None:
            name, count = job.target.stem, 1
            while True:
                path = job.target.with_name(_short(name, COMPARISON_SUFFIX))
                if _key(path) not in taken and (not os.path.lexists(path) or is_comparison(path)):
                    break
                name, count = job.target.name + (f".{count}" if count > 1 else ""), count + 1
            taken.add(_key(path))
            job = replace(job, comparison=path)
        named.append(job)
    return named


def _short(name: str, suffix: str) -> str:
    raw, room = os.fsencode(name), _NAME_BYTES - len(suffix)
    if len(raw) > room:  # cut between characters, and told apart from others of the same beginning
        kept = re.sub("[\udc80-\udcff]+$", "", os.fsdecode(raw[: room - 9]))
        return f"{kept}-{hashlib.sha256(raw).hexdigest()[:8]}{suffix}"
    return name + suffix
