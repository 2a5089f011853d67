"""The learning curve of a run as one SVG picture: validation gain in dB over steps, a small panel per degradation."""

from __future__ import annotations

import csv
from collections import defaultdict
from html import escape
from pathlib import Path

__all__ = ["curve_svg", "read_curve"]

_PANEL, _TALL, _GAP, _COLUMNS = 220, 96, 26, 3  # the longest name and its figure side by side


def read_curve(log: Path, prefix: str = "gain/") -> dict[str, list[tuple[int, float]]]:
    """The rows of ``log.csv`` whose name begins with ``prefix``, by the rest of the name: (step, value) in file order.

    A run that was resumed after a crash logged some steps twice: the later figure of a step counts.
    """
    points: dict[str, dict[int, float]] = defaultdict(dict)
    with log.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["name"].startswith(prefix):
                points[row["name"].removeprefix(prefix)][int(row["step"])] = float(row["value"])
    return {name: sorted(steps.items()) for name, steps in points.items()}


def curve_svg(curves: dict[str, list[tuple[int, float]]]) -> str:
    """A stand-alone SVG document; every panel has its own scale in dB, from the smaller of 0 and its least value."""
    rows = -(-len(curves) // _COLUMNS)
    width, height = _COLUMNS * (_PANEL + _GAP) + _GAP, rows * (_TALL + 2 * _GAP) + _GAP
    last = max((points[-1][0] for points in curves.values()), default=1) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11" role="img" aria-label="validation gain over steps">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, (name, points) in enumerate(sorted(curves.items())):
        x0 = _GAP + (index % _COLUMNS) * (_PANEL + _GAP)
        y0 = _GAP + (index // _COLUMNS) * (_TALL + 2 * _GAP)
        values = [value for _, value in points]
        low, high = min(0.0, *values), max(0.01, *values)

        def y_of(value: float, y0: int = y0, low: float = low, high: float = high) -> float:
            return y0 + _TALL * (high - value) / (high - low)

        line = " ".join(f"{x0 + _PANEL * step / last:.1f},{y_of(value):.1f}" for step, value in points)
        parts.append(f'<text x="{x0}" y="{y0 - 6}">{escape(name)}</text>')
        parts.append(
            f'<text x="{x0 + _PANEL}" y="{y0 - 6}" text-anchor="end" font-weight="bold">{values[-1]:+.2f} dB</text>'
        )
        parts.append(f'<path d="M{x0} {y_of(0):.1f}h{_PANEL}" stroke="#ccc"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.6"/>')
    parts.append(f'<text x="{_GAP}" y="{height - 8}" fill="#666">0 to {last} steps</text></svg>\n')
    return "".join(parts)
