"""A host's own code in a process of its own: a graph that it misreads may end the process, and some converters say on
their error output what they could not do, and end with code 0."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clusir.export.formats.hosts.base import Array, HostForm, Source
from clusir.export.formats.hosts.form import reference
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import compare
from clusir.export.validate.tolerances import Tolerance

__all__ = ["Refused", "answers", "call", "first_fault", "trial_pictures"]

_SECONDS = 900


class Refused(Exception):
    """The program refuses what it was given; the message is its reason, in one line."""


def call(python: str, script: str, folder: Path, *arguments: object) -> str:
    """Run a script with ``folder`` as its current and first argument; its error output. Raises Refused where it
    fails."""
    command = [python, "-c", script, str(folder), *(str(argument) for argument in arguments)]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"it did not end within {_SECONDS} s") from error
    if done.returncode:
        raise Refused(_reason(done.stderr, done.returncode))
    return done.stderr


def answers(python: str, script: str, files: Mapping[str, bytes], images: Sequence[Array]) -> list[Array]:
    """What a script makes of each picture: it finds ``files`` and ``INDEX.npy`` in the folder that is its first
    argument, the number of pictures in the second, and writes ``INDEX.out.npy``. Raises Refused."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        for index, image in enumerate(images):
            np.save(folder / f"{index}.npy", np.ascontiguousarray(image))
        call(python, script, folder, len(images))
        try:
            return [np.asarray(np.load(folder / f"{index}.out.npy"), np.float32) for index in range(len(images))]
        except (OSError, ValueError) as error:
            raise Refused(f"it left no answer ({error})") from error


def trial_pictures(side_px: int, channels: int) -> list[Array]:
    """Six pictures, the second and the last alike: what is misread may come out right on one and wrong on the next."""
    natural = natural_picture(side_px, side_px, channels)
    noise = np.random.default_rng(1).random(natural.shape, dtype=np.float32)
    return [natural, noise, np.zeros_like(natural), np.ones_like(natural), natural * 1.8 - 0.1, noise]


def first_fault(
    source: Source, form: HostForm, images: Sequence[Array], found: Sequence[Array], bound: Tolerance
) -> str:
    """How the first wrong answer is wrong; empty where all are right."""
    right = reference(source, form)
    for image, answer in zip(images, found, strict=True):
        agreement = compare({"restored": right(image)}, {"restored": answer}, bound)
        if not agreement.ok:
            return agreement.fault or "it differs"
    return ""


def _reason(said: str, code: int) -> str:
    """The operators that are missing, where OpenCV lists them; else the error that was printed, else how it ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if "Unsupported operations:" in line:
            named = line.split("Unsupported operations:")[1].split() or lines[index + 1 : index + 2]
            return f"it has no {', '.join(named)}"
    errors = [line for line in lines if "error" in line.lower()]
    return (errors[-1] if errors else f"its process ended with code {code}")[:300]
