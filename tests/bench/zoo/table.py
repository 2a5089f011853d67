"""The rows as a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["markdown", "right"]

_RIGHT_DB = 80.0
Row = dict[str, Any]


def right(row: Row, backend: str) -> bool:
    """Whether a file answers as its network at three sizes that were not traced and for a batch of two."""
    found = row.get(backend) or []
    return len(found) == 4 and all(value >= _RIGHT_DB for value in found)


def markdown(folder: Path, names: Iterable[str]) -> str:
    """What ``folder`` holds of ``names``: counts, the table, and why each of the others is not right."""
    read = [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").is_file()]
    rows = [row for row in read if "fp32" in row.get("done", [])]
    both = sum(right(row, "ort") and right(row, "openvino") for row in rows)
    refused = sum("fp32_refused" in row for row in rows)
    lines = [f"{len(rows)} architectures: {both} right on both runtimes, {refused} refused.", ""]
    lines += [
        "| architecture | scale | weights | size | seconds | ONNX Runtime | OpenVINO | tiles share | FP16 | INT8 |",
        "|---|---:|---:|---|---:|---:|---:|---|---:|---:|",
    ]
    told = []
    for row in rows:
        lines.append("| " + " | ".join(_cells(row)) + " |")
        told += [f"- {row['name']}, {c}: {why}" for c in ("fp32", "fp16", "int8") if (why := _why(row, c))]
    return "\n".join([*lines, "", *told]) + "\n"


def _cells(row: Row) -> list[str]:
    if "ort" not in row:
        what = "refused" if "fp32_refused" in row else "failed"
        return [row["name"], "", "", "", f"{row.get('fp32_seconds', '')}", what, what, "", "", ""]
    size = f"{row['static']} px only" if row["static"] else f"{row['multiple']}n from {row['minimum']}"
    shared = str(row["statistics"]) if row["statistics"] else "whole" if _whole(row) else "nothing"
    weights = f"{row['parameters'] / 1e6:.2f} M"
    lower = [_decibels(row.get(f"{precision}_db")) for precision in ("fp16", "int8")]
    return [row["name"], str(row["scale"]), weights, size, f"{row['seconds']:.0f}", _decibels(row["ort"]),
            _decibels(row["openvino"]), shared, *lower]  # fmt: skip


def _whole(row: Row) -> bool:
    return any(note.startswith("the whole picture decides") for note in row["notes"])


def _decibels(found: list[float] | None) -> str:
    return "" if not found else "wrong" if min(found) < 0 else f"{min(found):.0f} dB"


def _matters(note: str) -> bool:
    return "fixes the size" in note or note.startswith(("tiles share no", "the model takes one picture at a time"))


def _why(row: Row, column: str) -> str:
    for what in ("refused", "failed"):
        if why := row.get(f"{column}_{what}"):
            return f"{what} after {row.get(f'{column}_seconds', '?')} s: {why}"
    if column == "fp32":
        noted = [note for note in row.get("notes", []) if _matters(note)]
        return "; ".join(noted)
    return ""
