"""From what the user typed (files, folders, globs, an output) to a list of jobs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusir.errors import UsageError
from clusir.runtimes.images.formats import READ_SUFFIXES, WRITE_SUFFIXES

__all__ = ["Job", "is_file_output", "is_glob", "plan_jobs"]


@dataclass(frozen=True)
class Job:
    """One picture: where it comes from, where it goes, what it is called in lists. ``refusal`` is a reason known
    before it is opened."""

    source: Path
    target: Path
    name: str
    refusal: str | None = None


def is_file_output(inputs: Sequence[str], output: Path) -> bool:
    """Whether ``-o`` names a file: one input that is not a folder or glob, and an output with a picture's suffix."""
    single = len(inputs) == 1 and not Path(inputs[0]).is_dir() and (Path(inputs[0]).exists() or not is_glob(inputs[0]))
    return single and not output.is_dir() and output.suffix.lower() in WRITE_SUFFIXES


def plan_jobs(inputs: Sequence[str], output: Path, recursive: bool = True, suffix: str | None = None) -> list[Job]:
    """The jobs of ``inputs`` in a stable order.

    A file goes to ``output`` (or into it, where it is a folder); a folder's pictures keep their paths below it; a glob
    (``*``, ``?``, ``[..]``, ``**``) stands for the files it matches. Hidden files, links to folders, and the output
    folder itself are not looked into. ``suffix`` (``.png``) changes the format of all; GIF always becomes PNG.
    Raises UsageError where a glob matches nothing, or the output is a file and has to be a folder.
    """
    if not inputs:
        raise UsageError("no pictures given; name files, folders or globs")
    if suffix is not None and suffix not in WRITE_SUFFIXES:
        raise UsageError(f"format {suffix!r} is not one of {', '.join(WRITE_SUFFIXES)}")
    if is_file_output(inputs, output):
        return _checked([Job(Path(inputs[0]), output, inputs[0])])
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {output}: it is a file; several pictures, or a folder, need a folder")
    if not output.is_dir():
        _refuse_file_name(inputs, output)
    jobs: list[Job] = []
    for text in inputs:
        for path, root in _expand(text, recursive):
            if path.is_dir() and root is None:
                jobs += [_job(p, path, output, suffix, refusal) for p, refusal in _walk(path, output, recursive)]
            else:
                jobs.append(_job(path, root or path.parent, output, suffix, None))
    return _checked(jobs)


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


def is_glob(text: str) -> bool:
    """Whether a name holds a wildcard."""
    return any(c in text for c in "*?[")


def _expand(text: str, recursive: bool) -> Iterable[tuple[Path, Path | None]]:
    """(path, folder that its output path is relative to, None for what stands for itself)."""
    if not is_glob(text) or os.path.lexists(text):
        return [(Path(text), None)]
    matches = [Path(m) for m in sorted(glob.glob(text, recursive=recursive))]
    matches = [m for m in matches if not m.is_dir()]
    if not matches:
        raise UsageError(f"{text}: nothing matches")
    fixed = []
    for part in Path(text).parts:
        if is_glob(part):
            break
        fixed.append(part)
    root = Path(*fixed) if fixed else Path()
    return [(m, root) for m in matches]


def _walk(folder: Path, output: Path, recursive: bool) -> list[tuple[Path, str | None]]:
    found: list[tuple[Path, str | None]] = []
    excluded = output.resolve()

    def unreadable(error: OSError) -> None:
        found.append((Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    for base, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(base)
        # A folder that is called like a picture is named in the summary, not passed over.
        found += [(here / f, None) for f in folders if Path(f).suffix.lower() in READ_SUFFIXES]
        keep = [f for f in folders if not f.startswith(".") and (here / f).resolve() != excluded]
        folders[:] = sorted(keep) if recursive else []
        pictures = [f for f in files if Path(f).suffix.lower() in READ_SUFFIXES and not f.startswith(".")]
        found += [(here / f, None) for f in pictures]
    return sorted(found)


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
    return Job(source, target, str(source), refusal)


def _checked(jobs: list[Job]) -> list[Job]:
    """Refuse, one by one, jobs that would overwrite their own input or each other's output."""
    seen: dict[Path, Job] = {}
    sources = {job.source.resolve() for job in jobs}
    checked = []
    for job in jobs:
        target = job.target.resolve()
        refusal = job.refusal
        if target in sources:
            refusal = refusal or f"the output {job.target} is an input; choose another output with -o"
        elif target in seen:
            if seen[target].source.resolve() == job.source.resolve():
                continue  # the same file named twice
            refusal = refusal or f"its output {job.target} is that of {seen[target].source} too; choose another name"
        else:
            seen[target] = job
        checked.append(Job(job.source, job.target, job.name, refusal))
    return checked
