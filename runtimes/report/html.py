"""Entries to HTML, by the Jinja2 templates beside this file. The page asks nothing of the network, and forbids it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from clusir.runtimes.report.collect import Entry, Totals
from clusir.runtimes.restore.explain import Account, Level, summary

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render", "template"]

Bar = tuple[str, float, str]  # label, share in 0..1, value as text


def _asset(name: str) -> str:
    return resources.files("clusir.runtimes.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals["asset"] = _asset
    made.filters |= {"experts": _experts, "likeliest": _likeliest, "ms": _ms, "shares": _shares, "summary": summary,
                     "unit": lambda value: min(max(value, 0), 1)}  # fmt: skip
    return made


def template(source: str) -> Any:
    """A Jinja2 template that may build on ``page.html``: the project's style sheet and script, and nothing from
    elsewhere. Values are escaped unless they are marked safe."""
    return _environment().from_string(source)


def _experts(levels: Sequence[Level]) -> list[Bar]:
    return [
        (f"level {level.number}, expert {i}", weight, f"{weight:.2f}")
        for level in levels
        for i, weight in enumerate(level.gate)
        if weight > 0
    ]


def _likeliest(account: Account) -> list[Bar]:
    return [(label, share, f"{share:.2f}") for label, share in account.recognised[:5]]


def _ms(value: float) -> str:
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"


def _shares(times_ms: Mapping[str, float]) -> list[Bar]:
    longest = max(times_ms.values(), default=0) or 1
    return [(step, ms / longest, _ms(ms)) for step, ms in times_ms.items()]


def _overview(done: Sequence[Entry]) -> dict[str, Any]:
    """What all pictures together say: degradations recognised, experts used, where the time went."""
    routed = [entry.account for entry in done if entry.account.levels]
    total: dict[str, float] = {}
    for account in routed:
        for label, share in account.recognised:
            total[label] = total.get(label, 0) + share / len(routed)
    usage = []
    for place, level in enumerate(routed[0].levels if routed else ()):
        counts = [sum(account.levels[place].gate[e] > 0 for account in routed) for e in range(len(level.gate))]
        usage.append((level.number, counts))
    steps: dict[str, list[float]] = {}
    for entry in done:
        for step, ms in entry.timings_ms.items():
            steps.setdefault(step, []).append(ms)
    shares = sorted(total.items(), key=lambda item: -item[1])[:8]
    return {
        "recognised": [(label, share, f"{share:.2f}") for label, share in shares],
        "routed": len(routed),
        "usage": usage,
        "times": {step: statistics.median(times) for step, times in steps.items()},
    }


def render(title: str, facts: dict[str, str], entries: Sequence[Entry], totals: Totals, footer: str) -> str:
    """The page as text. ``facts`` label and value for the head; ``entries`` in the order they shall appear."""
    counted = {"restored": totals.restored, "failed": totals.failed, "megapixels": f"{totals.pixels / 1e6:.2f}"}
    page: str = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            facts=counted | facts,
            entries=entries,
            overview=_overview([entry for entry in entries if not entry.error]),
            missing=totals.restored + totals.failed - len(entries),
            footer=footer,
        )
    )
    return page
