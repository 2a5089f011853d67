"""The rows as a table in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["markdown", "right"]

_RIGHT_DB = 80.0
_COLUMNS = ("architecture", "scale", "weights", "size", "seconds", "ONNX Runtime", "OpenVINO", "tiles share", "FP16",
            "INT8", "C++")  # fmt: skip
_KINDS = (" pools a map that is no part of the picture's size", " compares every pixel with every other")
Row = dict[str, Any]


def right(row: Row, backend: str) -> bool:
    """Whether a file answers as its network at three sizes that were not traced (at its one size where the network
    takes no other) and for a batch of two."""
    found = row.get(backend) or []
    return len(found) == (2 if row.get("static") else 4) and all(value >= _RIGHT_DB for value in found)


def markdown(folder: Path, names: Iterable[str]) -> str:
    """What ``folder`` holds of ``names``: counts, the table, and why each of the others is not right."""
    read = [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").is_file()]
    rows = [row for row in read if "fp32" in row.get("done", [])]
    agree = [row for row in rows if right(row, "ort") and right(row, "openvino")]
    both = [row for row in agree if not row.get("asked")]
    asked = len(agree) - len(both)
    fixed = sum(bool(row["static"]) for row in both)
    refused = sum("fp32_refused" in row for row in rows)
    told_fixed = f" ({fixed} of them for one size alone)" if fixed else ""
    told_asked = f", {asked} more at the one size that was asked for" if asked else ""
    lines = [
        f"{len(rows)} architectures: {len(both)} right on both runtimes{told_fixed}{told_asked}, {refused} refused.",
        "",
    ]
    lines += [
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---:|---:|---|---:|---:|---:|---|---:|---:|---|",
    ]
    told = []
    for row in rows:
        lines.append("| " + " | ".join(_cells(row)) + " |")
        told += [
            f"- {row['name']}, {c}: {_shortened(why, folder)}"
            for c in ("fp32", "fp16", "int8", "cpp")
            if (why := _why(row, c))
        ]
    return "\n".join([*lines, "", *told]) + "\n"


def _shortened(why: str, folder: Path) -> str:
    """Without folders of this machine; of several norms of one kind the first stands for all."""
    why = re.sub(r"\S*/site-packages/", "", why.replace(f"{folder}/", ""))
    reasons = why.split("; ")
    for kind in _KINDS:
        alike = [reason for reason in reasons if reason.endswith(kind)]
        if len(alike) > 1:
            reasons = [r for r in reasons if r not in alike[1:]]
            reasons[reasons.index(alike[0])] += f" (and {len(alike) - 1} more)"
    return "; ".join(reasons)


def _cells(row: Row) -> list[str]:
    if "ort" not in row:
        what = "refused" if "fp32_refused" in row else "failed"
        return [row["name"], "", "", "", f"{row.get('fp32_seconds', '')}", what, what, "", "", "", ""]
    fixed = f"{row['static']} px {'asked for' if row.get('asked') else 'only'}"
    most = f" to {row['maximum']}" if row.get("maximum") else ""
    size = fixed if row["static"] else f"{row['multiple']}n from {row['minimum']}{most}"
    shared = str(row["statistics"]) if row["statistics"] else "whole" if _whole(row) else "nothing"
    weights = f"{row['parameters'] / 1e6:.2f} M"
    lower = [_decibels(_judged(row, f"{precision}_db")) for precision in ("fp16", "int8")]
    cpp = "" if "cpp" not in row else "agrees" if row["cpp"] == "agrees" else "differs"
    agree = [_decibels(_judged(row, backend)) for backend in ("ort", "openvino")]
    return [row["name"], str(row["scale"]), weights, size, f"{row['seconds']:.0f}", *agree, shared, *lower, cpp]


def _judged(row: Row, column: str) -> list[float]:
    """Without the batch of two, which is second, where the file says that it takes one picture."""
    found: list[float] = row.get(column, [])
    alone = any("fixes the batch" in note or "takes one picture at a time" in note for note in row["notes"])
    return [*found[:1], *found[2:]] if alone else found


def _whole(row: Row) -> bool:
    return any(note.startswith("the whole picture decides") for note in row["notes"])


def _decibels(found: list[float]) -> str:
    return "" if not found else "wrong" if min(found) < 0 else f"{min(found):.0f} dB"


def _matters(note: str) -> bool:
    return (
        "fixes the size" in note
        or "fixes the batch" in note
        or note.startswith(("tiles share no", "the model takes one picture at a time"))
    )


def _why(row: Row, column: str) -> str:
    for what in ("refused", "failed"):
        if why := row.get(f"{column}_{what}"):
            return f"{what} after {row.get(f'{column}_seconds', '?')} s: {why}"
    if column == "cpp" and row.get("cpp", "agrees") != "agrees":
        return str(row["cpp"])
    if column == "fp32":
        noted = [note for note in row.get("notes", []) if _matters(note)]
        return "; ".join(noted)
    return ""
