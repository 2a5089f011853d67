"""From a model file to the folders of hosts: ``clusir-export --target NAME``. Nothing takes its place that failed its
own self-test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.formats.hosts.base import Host, Source
from clusir.export.formats.hosts.form import common_faults, host_form, reference
from clusir.export.formats.hosts.golden import write_golden
from clusir.export.formats.hosts.integers import Int8Config, Integers
from clusir.export.formats.hosts.registry import target
from clusir.export.formats.hosts.selftest import Finding, read_record, self_test, write_record
from clusir.export.staging import staged
from clusir.export.subjects.onnx_file import read_onnx
from clusir.spec import ModelSpec

__all__ = ["Written", "export_targets", "hosts_of", "open_source"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """One target's folder, its files (relative) and what its self-test found."""

    target: str
    folder: Path
    files: tuple[str, ...]
    findings: tuple[Finding, ...]


def open_source(path: Path, name: str = "") -> Source:
    """A model file that clusir wrote, with the tile and the router graph beside it.

    Raises UsageError where it is absent, ModelFormatError where it carries no clusir metadata.
    """
    model = read_onnx(path)
    spec = ModelSpec.from_metadata({p.key: p.value for p in model.metadata_props})
    stem = path.name.removesuffix(".onnx")
    beside = [path.with_name(f"{stem}.{graph}.onnx") for graph in ("tile", "router")]
    tile, router = (read_onnx(graph) if spec.routed and graph.is_file() else None for graph in beside)
    return Source(model, spec, name or spec.name, tile, router)


def export_targets(
    source: Source,
    folder: Path,
    hosts: Sequence[Host],
    progress: Progress = lambda _: None,
    int8: Int8Config | None = None,
) -> list[Written]:
    """Write ``folder/NAME`` for each host; all are asked what they could not run before anything is written. ``int8``:
    INT8 files too.

    Raises UnsupportedModelError for that, BudgetError where INT8 loses too much, ValidationError where a self-test
    fails, UsageError where a file is in the way that no such export has written.
    """
    prepared = []
    for host in hosts:
        progress(f"asking what {host.name} could not run")
        if int8 is not None and host.no_int8:
            raise UnsupportedModelError(f"--target {host.name}: there is no INT8 for it: {host.no_int8}")
        if faults := common_faults(source, host.channels):
            raise UnsupportedModelError(f"--target {host.name}: {'; '.join(faults)}")
        given = host.prepare(source)
        if faults := host.lint(given):
            raise UnsupportedModelError(f"--target {host.name}: {'; '.join(faults)}")
        if (most := given.spec.size.maximum) and host.form(given).any_size:
            raise UnsupportedModelError(
                f"--target {host.name}: it gives pictures of any size, and the network takes {most} px at most; export "
                "it for one size with --size first, and give that file with --from"
            )
        prepared.append(given)
    written = []
    for host, given in zip(hosts, prepared, strict=True):
        progress(f"writing for {host.name}")
        written.append(_write(given, folder / host.name, host, int8, progress))
    return written


def _write(source: Source, folder: Path, host: Host, int8: Int8Config | None, progress: Progress) -> Written:
    form = host.form(source)
    names = (form.input_name, form.output_name)
    mine = _mine(folder)

    def check(files: list[str]) -> None:
        for name in files:
            if (folder / name).exists() and name not in mine:
                raise UsageError(f"{folder / name} is in the way and was not written by this command; move it away")

    with staged(folder, check=check) as stage:
        inside = stage / folder.name  # a host may read the folder's own name
        inside.mkdir()
        model = host_form(source, form)
        # The metadata would describe the graph as it was; a reader of clusir's must not take this for one of its own.
        del model.metadata_props[:]
        model.producer_name = "clusir"
        host.write(source, model, inside)
        lost = []
        if int8 is not None:
            progress(f"INT8 for {host.name}: drawing calibration crops")
            drawn = Integers(source, form.side_px, int8)
            progress(f"INT8 for {host.name}")
            told = host.add_int8(model, inside, drawn, (int8.mean_db, int8.worst_db))
            lost.append(Finding("int8", host.name, None, told))
        write_golden(inside, reference(source, form), source.spec.channels, form.side_px, host)
        write_record(inside, host.name, names)
        findings = [*self_test(host, inside, names), *lost]
        files = sorted(path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file())
        for path in list(inside.iterdir()):
            path.rename(stage / path.name)
        inside.rmdir()
    for name, digest in mine.items():
        old = folder / name
        if name not in files and old.is_file() and hashlib.sha256(old.read_bytes()).hexdigest() == digest:
            old.unlink()
    return Written(host.name, folder, tuple(files), tuple(findings))


def _mine(folder: Path) -> dict[str, str]:
    """The files of a folder that an export wrote for a host, with their hashes."""
    if not (folder / "target.json").is_file():
        return {}
    return {**read_record(folder)["files"], "target.json": ""}


def hosts_of(names: Sequence[str]) -> list[Host]:
    """Those hosts, all that they need being installed. Raises UsageError, BackendError."""
    hosts = [target(name) for name in names]
    for host in hosts:
        host.requires()
    return hosts
