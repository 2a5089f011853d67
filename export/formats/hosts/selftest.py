"""The self-test of a target's folder: the files are those that were written, the graph opens, has the promised names
and shapes, answers finite, repeatable, right, and reduces noise; first in ONNX Runtime, then in the host's own code."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clusir.errors import ModelFormatError, UsageError, ValidationError
from clusir.export.formats.hosts.base import Array, Further, Host, NotRunHere
from clusir.export.formats.hosts.golden import GoldenCase, read_golden
from clusir.export.formats.hosts.registry import target
from clusir.export.graph.session import Probe
from clusir.export.validate.compare import Agreement, check, compare
from clusir.export.validate.tolerances import tolerance
from clusir.quality.metrics import psnr

__all__ = ["Finding", "check_files", "self_test", "verify_target", "write_record"]

_RECORD = "target.json"
_GAIN_DB = 0.25  # half of what was seen when the case was written


@dataclass(frozen=True)
class Finding:
    """One comparison. ``via``: ``onnxruntime`` or the host's name; ``note``: why the host was not run, where
    ``agreement`` is None."""

    case: str
    via: str
    agreement: Agreement | None
    note: str = ""


def write_record(folder: Path, host: str, names: tuple[str, str]) -> None:
    """``target.json``: for which host the folder is, the graph's input and output, every file with its SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    record = {"target": host, "input": names[0], "output": names[1], "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """What ``target.json`` says. Raises ModelFormatError where it cannot be read."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        texts = [record[key] for key in ("target", "input", "output")]
        if not all(isinstance(text, str) for text in texts) or not record["files"]:
            raise ValueError("it names no file")
        if not all(isinstance(word, str) for pair in record["files"].items() for word in pair):
            raise ValueError("its files are no names with hashes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFormatError(
            f"{folder}: {_RECORD} cannot be read ({type(error).__name__}: {error}); export the target again"
        ) from error
    return dict(record)


def check_files(folder: Path, host: str) -> dict[str, Any]:
    """The record of a folder whose files are those that it names. Raises ModelFormatError otherwise."""
    record = read_record(folder)
    if record["target"] != host:
        raise UsageError(f"{folder} was written for {record['target']}, not for {host}")
    for name, digest in record["files"].items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ModelFormatError(f"{folder}: {_RECORD} names {name!r}, which is not inside it")
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            state = "not the file that was written" if path.is_file() else "missing"
            raise ModelFormatError(f"{folder}: {name} is {state}; export the target again")
    return record


def verify_target(name: str, folder: Path) -> list[Finding]:
    """The self-test of FOLDER, or of FOLDER/NAME. Raises UsageError for an unknown host or a folder of none,
    ModelFormatError for files that are not those that were written, ValidationError for a wrong answer."""
    host = target(name)
    here = folder if (folder / _RECORD).is_file() else folder / name
    if not (here / _RECORD).is_file():
        raise UsageError(f"{folder}: no {_RECORD} in it or in {name}/; write one with clusir-export --target {name}")
    record = check_files(here, name)
    return self_test(host, here, (record["input"], record["output"]))


def self_test(host: Host, folder: Path, names: tuple[str, str]) -> list[Finding]:
    """Both golden cases in ONNX Runtime and in the host's own code. Raises ValidationError for a wrong answer."""
    host.check(folder)
    path = host.model(folder)
    probe = None if path is None else _opened(path, names)
    further = [(one, None if one.path is None else _opened(one.path, names)) for one in host.further(folder)]
    cases, found = read_golden(folder), []
    images = [case.image for case in cases]

    @functools.cache
    def answers() -> list[Array]:
        # Twice where nothing else is asked twice: a graph may answer differently each time.
        return host.runs(folder, images if probe is not None else [*images, *images])

    for index, case in enumerate(cases):
        if probe is not None:
            found.append(_in_onnxruntime(host, case, probe))
        for one, its in further:
            found.append(
                Finding(f"{case.name}, {one.precision}", "onnxruntime", None, one.absent)
                if its is None
                else _in_onnxruntime(host, case, its, one)
            )
        try:
            seen = answers()[index]
        except NotRunHere as reason:
            found.append(Finding(case.name, host.name, None, f"not run here: {reason}"))
            continue
        wanted = case.expected
        if host.levels:
            wanted = (np.rint(wanted.clip(0, 1) * 255) / 255).astype(np.float32)
        agreement = compare({"restored": wanted}, {"restored": seen}, host.bound)
        found.append(Finding(case.name, host.name, check(agreement, f"{host.name}, {case.name}")))
        _reduces(case, seen, host.name)
        if probe is None:
            _repeats(host.name, case, seen, answers()[len(cases) + index])
        for what, agreement_, note in host.more(folder, case.image, wanted):
            found.append(Finding(f"{case.name}, {what}", host.name, agreement_, note))
    return found


def _opened(path: Path, names: tuple[str, str]) -> Probe:
    probe = Probe(onnx.load(str(path)), threads=1)
    if (probe.inputs, probe.outputs) != ([names[0]], [names[1]]):
        raise ValidationError(f"{path}: its tensors are {probe.inputs} and {probe.outputs}, {names} were promised")
    return probe


def _in_onnxruntime(host: Host, case: GoldenCase, probe: Probe, further: Further | None = None) -> Finding:
    (given,), (answer,) = probe.inputs, probe.outputs
    got = probe.run({given: case.image})[answer]
    name = case.name if further is None else f"{case.name}, {further.precision}"
    bound = tolerance("brought") if further is None else further.bound
    agreement = compare({"restored": case.expected}, {"restored": got}, bound)
    found = Finding(name, "onnxruntime", check(agreement, f"onnxruntime, {name}"))
    _repeats(host.name, case, got, probe.run({given: case.image})[answer])
    _reduces(case, got, "onnxruntime")
    return found


def _repeats(host: str, case: GoldenCase, first: Array, second: Array) -> None:
    if not np.array_equal(first, second):
        raise ValidationError(f"{host}, {case.name}: the graph answers differently each time")


def _reduces(case: GoldenCase, answer: Array, via: str) -> None:
    if case.reduces:
        before, after = psnr(case.image, case.clean), psnr(answer.clip(0, 1), case.clean)
        if not (after >= before + _GAIN_DB):
            raise ValidationError(f"{via}, {case.name}: noise is not reduced ({before:.1f} dB, then {after:.1f} dB)")
