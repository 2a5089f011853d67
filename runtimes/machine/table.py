"""Measurements as tables: Markdown for documents, rows for the terminal, plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clusir.markdown import table
from clusir.runtimes.machine.fingerprint import describe
from clusir.runtimes.machine.measure import Measurement

__all__ = ["COLUMNS", "as_json", "rows", "to_markdown"]

COLUMNS = (
    "size",
    "model",
    "precision",
    "backend",
    "p50 / p95 / p99 ms",
    "decode / infer / encode ms",
    "images/s",
    "MPix/s",
    "infer, relative",
    "peak MiB",
    "open + first ms",
    "nodes",
)


def _name(measured: Measurement) -> str:
    return Path(measured.case.model).name if measured.case.model else "shipped"


def rows(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """One row per measurement, as text. ``relative`` compares inference with the first that ran at that size."""
    first: dict[int, float] = {}
    for m in measurements:
        if m.infer_ms:
            first.setdefault(m.case.size_px, m.infer_ms)
    table = []
    for m in measurements:
        head = (f"{m.case.size_px}", _name(m), m.case.precision, m.name or m.case.backend)
        if m.total is None:
            table.append((*head, m.error, *([""] * (len(COLUMNS) - 5))))
            continue
        table.append(
            (
                *head,
                f"{m.total.p50:.1f} / {m.total.p95:.1f} / {m.total.p99:.1f}",
                f"{m.decode_ms:.1f} / {m.infer_ms:.1f} / {m.encode_ms:.1f}",
                f"{m.images_per_s:.2f}",
                f"{m.megapixels_per_s:.3f}",
                f"{m.infer_ms / first[m.case.size_px]:.2f}",
                "" if m.peak_mib is None else f"{m.peak_mib:.0f}",
                f"{m.open_ms:.0f} + {m.first_ms:.0f}",
                ", ".join(f"{count} {where.removesuffix('ExecutionProvider')}" for where, count in m.placement.items()),
            )
        )
    return table


def to_markdown(
    measurements: Sequence[Measurement], machine: dict[str, Any], runs: int, quality: Sequence[str] = ()
) -> str:
    """The whole report: latency table, what its columns mean, quality tables, machine."""
    return "\n".join(
        [
            "# clusir-bench\n",
            table(COLUMNS, rows(measurements), left=4),
            f"{runs} pictures per row, file to file (PNG), the rows of one size taking turns in one process: read the "
            "relative column first. Size is the side of a square picture in pixels; MPix/s is restoration alone; peak "
            "memory is that of a process of its own; opening and the first picture are not in the percentiles.\n",
            *quality,
            f"Measured on: {describe(machine)}\n",
        ]
    )


def as_json(
    measurements: Sequence[Measurement], machine: dict[str, Any], runs: int, quality: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "machine": machine,
        "runs": runs,
        "measurements": [m.as_dict() for m in measurements],
        "quality": list(quality),
    }
