"""What an export may replace: files that an export has written. Everything else in the folder is somebody's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clusir.errors import ClusirError, UsageError
from clusir.runtimes.runners.external import DATA_SUFFIX, external_files
from clusir.runtimes.runners.metadata import read_metadata

__all__ = ["listed", "refuse_foreign", "retire"]


def listed(folder: Path, stem: str) -> set[str]:
    """The names that a former export into this folder says it wrote, in its manifest or its report."""
    names: set[str] = set()
    for name in ("manifest.json", "report.json", f"{stem}.report.json"):
        data = _read(folder / name)
        if _is_manifest(data) or _is_report(data):
            names |= {name, *(str(file) for file in data.get("files") or ())}
    # A package may hold the losses without the report.
    losses = f"{stem}.losses.json"
    return names | {losses} if _is_losses(_read(folder / losses)) else names


def refuse_foreign(folder: Path, names: Iterable[str], stem: str) -> None:
    """Raise UsageError where one of ``names`` (relative) is there and was not written by an export of clusir."""
    mine = listed(folder, stem)
    for name in names:
        path = folder / name
        if not os.path.lexists(path) or name in mine or (path.suffix == ".onnx" and _has_spec(path)):
            continue
        if path.suffix == DATA_SUFFIX and any(path.resolve() in external_files(graph) for graph in _ours(path.parent)):
            continue
        raise UsageError(
            f"{path} is there and was not written by clusir-export; move it away, or name another folder or file"
        )


def retire(folder: Path, stem: str, names: Iterable[str], replaced: bytes | None) -> list[str]:
    """Rename to ``NAME.stale`` what a former export wrote beside ``stem.onnx`` in other precisions and this one did
    not, where the graph itself, ``replaced``, has changed: it would be taken for a variant of the new one."""
    whole = folder / f"{stem}.onnx"
    if replaced is None or not whole.is_file() or whole.read_bytes() == replaced:
        return []
    variants = [f"{stem}{precision}{graph}.onnx" for precision in (".fp16", ".int8") for graph in ("", ".tile")]
    variants += [f"{stem}.statistics.onnx", f"{stem}.tile.onnx"]
    old = [name for name in variants if name not in set(names) and _has_spec(folder / name)]
    # Their weights, and those of a graph that has them inside now: its own name was ours to replace.
    data = (f"{stem}{precision}.onnx{DATA_SUFFIX}" for precision in ("", ".fp16", ".int8"))
    left = [name for name in data if name not in set(names) and (folder / name).is_file()]
    kept = {path.name for graph in _ours(folder) if graph.name not in old for path in external_files(graph)}
    old += [name for name in left if name not in kept and name.removesuffix(DATA_SUFFIX) in {*old, whole.name}]
    for name in old:
        os.replace(folder / name, folder / f"{name}.stale")
    return old


def _ours(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.onnx") if _has_spec(path)]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_manifest(data: Any) -> bool:
    return isinstance(data, dict) and "clusir.spec_version" in (data.get("spec") or ())


def _is_report(data: Any) -> bool:
    return isinstance(data, dict) and {"graphs", "parity", "precisions"} <= set(data)


def _is_losses(data: Any) -> bool:
    return isinstance(data, dict) and {"format", "losses", "sha256"} <= set(data)


def _has_spec(path: Path) -> bool:
    try:
        return "clusir.spec_version" in read_metadata(path)
    except ClusirError:
        return False
