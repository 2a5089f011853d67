"""The frontier as one SVG picture, drawn by us: loss in dB over file size, one dot a variant."""

from __future__ import annotations

import math
from html import escape

from clusir.export.precision.frontier import Frontier

__all__ = ["frontier_svg"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 320, 64, 44, 18, 18


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= wanted)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.ceil(high / step) + 1)]


def frontier_svg(frontier: Frontier, max_drop_db: float | None = None) -> str:
    """A stand-alone SVG document: x the file in MB, y the drop on the worst degradation in dB, a line at the budget."""
    finite = [p for p in frontier.points if math.isfinite(p.loss.worst_db)]
    xs = [p.bytes / 1e6 for p in finite] or [0.0]
    ys = [p.loss.worst_db for p in finite] or [0.0]
    x_ticks = _ticks(min(xs) * 0.98, max(xs) * 1.02)
    y_ticks = _ticks(min(0.0, *ys), max(*ys, max_drop_db or 0.0, 1e-3))

    def x_of(value: float) -> float:
        return _LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="11" role="img" aria-label="quality loss over file size">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{tick:.3g}</text>')
    middle = _TOP + (_HEIGHT - _BOTTOM - _TOP) / 2
    parts.append(f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">file size, MB</text>')
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        "drop on the worst degradation, dB</text>"
    )
    if max_drop_db is not None:
        y = y_of(max_drop_db)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#c33" stroke-dasharray="5 4"/>')
    for index, point in enumerate(frontier.points):
        if not math.isfinite(point.loss.worst_db):
            continue
        x, y = x_of(point.bytes / 1e6), y_of(point.loss.worst_db)
        chosen = index == frontier.chosen
        fill = "#1565c0" if chosen else "#90a4ae"
        title = escape(f"{point.name}: {point.loss.worst_db:.3f} dB, {point.bytes / 1e6:.2f} MB")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if chosen else 4}" fill="{fill}"><title>{title}</title></circle>'
        )
    return "\n".join([*parts, "</svg>"])
