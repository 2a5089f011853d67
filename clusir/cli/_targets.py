"""``--target``: models as other programs open them, written by clusir-export and checked by clusir-verify."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from clusir.cli._adopt import DESCRIBING, description
from clusir.cli._common import console as stdout
from clusir.errors import ModelFormatError, UsageError

if TYPE_CHECKING:
    from clusir.export.formats.hosts.base import Source
    from clusir.export.formats.hosts.selftest import Finding

__all__ = ["run_targets", "verify_target_folder"]

_HEEDED = {*DESCRIBING, "targets", "source", "onnx_path", "output", "as_json", "debug", "precision"}
_OF_INT8 = {"calibration", "seed"}  # heeded with --precision int8 alone


def run_targets(names: tuple[str, ...], out: Path, options: dict[str, Any], context: click.Context) -> None:
    """Write OUT/NAME for every target and print what was compared. Raises UsageError for options that do nothing
    here, BackendError for a package that is missing."""
    int8 = "int8" in options["precision"]
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in _HEEDED | (_OF_INT8 if int8 else set()):
            raise UsageError(f"{parameter.opts[0]} does nothing with --target; leave it out")
    if other := [precision for precision in options["precision"] if precision not in ("fp32", "int8")]:
        raise UsageError(
            f"--precision {other[0]} does nothing with --target: a program that reads float16 is given it unasked; "
            "give int8, or leave it out"
        )
    if out.suffix == ".onnx" or out.is_file():
        raise UsageError(f"--onnx {out}: --target writes folders; name a folder")
    from clusir.export.formats.hosts.folders import export_targets, hosts_of
    from clusir.export.formats.hosts.integers import Int8Config

    hosts = hosts_of(names)  # before any work
    asked = Int8Config(options["calibration"], options["seed"]) if int8 else None
    from rich.console import Console

    with TemporaryDirectory() as scratch, Console(stderr=True).status("reading") as status:
        source = _source(options, Path(scratch), context)
        made = export_targets(source, out, hosts, progress=lambda step: status.update(step), int8=asked)
    if options["as_json"]:
        told = [
            {"target": one.target, "folder": str(one.folder), "files": one.files, "findings": _rows(one.findings)}
            for one in made
        ]
        click.echo(json.dumps({"targets": told}, allow_nan=False))
        return
    for one in made:
        stdout().print(f"{one.folder}: {len(one.files)} files", highlight=False, soft_wrap=True)
        _print(one.findings)


def _source(options: dict[str, Any], scratch: Path, context: click.Context) -> Source:
    """The shipped model, a file or bundle of clusir's as it is, any other ONNX file adopted."""
    from clusir.export.formats.hosts.folders import open_source
    from clusir.runtimes.runners.files import find_model

    path: Path | None = options["source"]
    described = [
        p.opts[0]
        for p in context.command.params
        if p.name in (*DESCRIBING, "output")
        and context.get_parameter_source(p.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if path is None or path.is_dir() or path.suffix == ".zip":
        if described:
            raise UsageError(f"{described[0]} describes a file of another tool for --from, and there is none")
        files = find_model(None if path is None else str(path))
        try:
            return open_source(files.whole, "" if path is None or files.whole.stem != "model" else path.stem)
        finally:
            files.close()
    try:
        found = open_source(path)
    except ModelFormatError:
        from clusir.export.adopt import AdoptionConfig, adopt

        adopted = scratch / f"{path.stem}.onnx"
        adopt(path, adopted, AdoptionConfig(description(options), backends=("ort",)))
        return open_source(adopted, path.stem)
    if described:
        raise UsageError(f"{described[0]} does nothing: {path} describes itself; leave it out")
    return found


def _rows(findings: tuple[Finding, ...] | list[Finding]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for found in findings:
        row: dict[str, Any] = {"case": found.case, "via": found.via, "note": found.note}
        if found.agreement is not None:
            row |= {"max_abs": found.agreement.max_abs, "psnr_db": min(found.agreement.psnr_db, 999.0)}
        rows.append(row)
    return rows


def _print(findings: tuple[Finding, ...] | list[Finding]) -> None:
    for found in findings:
        agreement = found.agreement
        text = (
            found.note
            if agreement is None
            else f"right, largest difference {agreement.max_abs:.1e}, {min(agreement.psnr_db, 999.0):.1f} dB"
        )
        stdout().print(f"- {found.case}, {found.via}: {text}", highlight=False, soft_wrap=True)


def verify_target_folder(name: str, folder: Path, as_json: bool) -> None:
    """The self-test of a target's folder."""
    from clusir.export.formats.hosts.folders import hosts_of
    from clusir.export.formats.hosts.selftest import verify_target

    hosts_of([name])
    findings = verify_target(name, folder)
    if as_json:
        click.echo(json.dumps({"target": name, "findings": _rows(findings)}, allow_nan=False))
        return
    _print(findings)
