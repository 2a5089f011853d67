"""Entries to HTML. The page asks nothing of the network, and its policy forbids it to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from clusir.runtimes.report.collect import Entry, Pair, Totals
from clusir.runtimes.restore.explain import Level, recognised, summary

__all__ = ["bars", "page", "render"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"

_COLUMNS = {"picture": "", "size": "", "recognised": ' class="words"', "change": "", "time": ""}


def _asset(name: str) -> str:
    return resources.files("clusir.runtimes.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """A whole HTML page around ``body`` (HTML), with the project's style sheet and script inside it."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n"
    )


def bars(rows: Iterable[tuple[str, float, str]], kind: str = "") -> str:
    """A list of horizontal bars: ``(label, share in 0..1, value as text)``; ``kind`` is a colour class."""
    cells = "".join(
        f'<dt>{escape(label)}</dt><dd class="track" aria-hidden="true">'
        f'<i style="--v:{100 * min(max(share, 0), 1):.1f}"></i></dd>'
        f'<dd class="value">{escape(value)}</dd>'
        for label, share, value in rows
    )
    return f'<dl class="bars {kind}">{cells}</dl>'


def _slider(pair: Pair, name: str) -> str:
    small = " small" if min(pair.width, pair.height) < 120 else ""
    # A tiny picture is enlarged so that it can be seen and dragged; a long narrow one keeps a sensible height.
    width = max(pair.width, min(320, 64 * pair.width))
    label = escape(f"{name}: drag or use the arrow keys to compare before and after", quote=True)
    return (
        f'<figure><div class="slider{" exact" if pair.exact else ""}{small}" '
        f'style="aspect-ratio:{pair.width}/{pair.height};max-width:{width}px;min-height:24px;max-height:80vh">'
        f'<img class="after" src="{pair.after}" alt="{escape(name, quote=True)}, restored" decoding="async">'
        f'<img class="before" src="{pair.before}" alt="{escape(name, quote=True)}, as it came" decoding="async">'
        '<span class="tag left">before</span><span class="tag right">after</span><span class="bar"></span>'
        f'<input type="range" min="0" max="100" value="50" step="1" aria-label="{label}"></div>'
        f"<figcaption>{escape(pair.caption)}</figcaption></figure>"
    )


def _heat(levels: Sequence[Level]) -> str:
    """Every cluster's posterior and every expert's weight, level by level."""
    parts = []
    for kind, title in (
        ("clusters", "Clusters: posterior, sums to 1 per level"),
        ("experts", "Experts: weight; 0 did not run"),
    ):
        rows = []
        for level in levels:
            values = level.posterior if kind == "clusters" else level.gate
            top = max(values)
            cells = []
            for i, value in enumerate(values):
                under = level.labels[i] if kind == "clusters" else f"expert {i}"
                on = "on" if (value == top if kind == "clusters" else value > 0) else ""
                cells.append(
                    f'<td class="{on}" style="--v:{min(max(value, 0), 1):.3f}">{value:.2f}'
                    f'<small title="{escape(under, quote=True)}">{escape(under)}</small></td>'
                )
            rows.append(f'<tr><th scope="row">level {level.number}</th>{"".join(cells)}</tr>')
        parts.append(
            f'<div class="scroll"><table class="heat {kind}"><caption>{title}</caption>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
    return f'<details><summary>Routing of every level</summary><div class="levels">{"".join(parts)}</div></details>'


def _experts(levels: Sequence[Level]) -> list[tuple[str, float, str]]:
    return [
        (f"level {level.number}, expert {i}", weight, f"{weight:.2f}")
        for level in levels
        for i, weight in enumerate(level.gate)
        if weight > 0
    ]


def _timings(timings_ms: Mapping[str, float]) -> str:
    longest = max(timings_ms.values(), default=0) or 1
    return bars(((step, ms / longest, _ms(ms)) for step, ms in timings_ms.items()), "third")


def _ms(value: float) -> str:
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"


def _entry(entry: Entry, number: int) -> str:
    head = f"<header><h2>{escape(entry.name)}</h2>"
    if entry.error:
        reason = f"<p>Not restored: {escape(entry.error)}</p>"
        return f'<section class="card picture failed" id="p{number}">{head}</header>{reason}</section>'
    head += f'<span class="quiet">{entry.width} x {entry.height} px · mean change {entry.change:.1f} of 255'
    head += f" · {escape(entry.note)}</span></header>" if entry.note else "</span></header>"
    details = []
    if entry.levels:
        shares = [(label, share, f"{share:.2f}") for label, share in recognised(entry.levels)[:5]]
        details.append(f"<div><h3>Recognised</h3>{bars(shares)}</div>")
        details.append(f"<div><h3>Experts that ran</h3>{bars(_experts(entry.levels), 'second')}</div>")
    if entry.timings_ms:
        details.append(f"<div><h3>Time</h3>{_timings(entry.timings_ms)}</div>")
    sliders = "".join(_slider(pair, entry.name) for pair in entry.pairs)
    pictures = f'<div class="pairs">{sliders}</div>'
    if not sliders:
        pictures = '<p class="quiet">No thumbnail: the page reached its size limit.</p>'
    heat = _heat(entry.levels) if entry.levels else ""
    more = f'<div class="details">{"".join(details)}</div>{heat}'
    return f'<section class="card picture" id="p{number}">{head}{pictures}{more}</section>'


def _usage(routed: Sequence[Entry]) -> str:
    """How many pictures each expert of each level worked on."""
    rows = []
    for place, level in enumerate(routed[0].levels):
        counts = [sum(entry.levels[place].gate[e] > 0 for entry in routed) for e in range(len(level.gate))]
        cells = "".join(
            f'<td class="{"strong" if n else ""}" style="--v:{n / len(routed):.3f}">{n}<small>expert {e}</small></td>'
            for e, n in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">level {level.number}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="heat experts"><tbody>{"".join(rows)}</tbody></table></div>'


def _overview(done: Sequence[Entry]) -> str:
    """What all pictures together say: damage recognised, experts used, where the time went."""
    panels = []
    routed = [e for e in done if e.levels]
    if routed:
        total: dict[str, float] = {}
        for entry in routed:
            for label, share in recognised(entry.levels):
                total[label] = total.get(label, 0) + share / len(routed)
        shares = sorted(total.items(), key=lambda item: -item[1])[:8]
        panels.append(f"<h3>Recognised, mean over pictures</h3>{bars((k, v, f'{v:.2f}') for k, v in shares)}")
        panels.append(f"<h3>Expert usage, pictures of {len(routed)}</h3>{_usage(routed)}")
    steps: dict[str, list[float]] = {}
    for entry in done:
        for step, ms in entry.timings_ms.items():
            steps.setdefault(step, []).append(ms)
    if steps:
        medians = {step: statistics.median(times) for step, times in steps.items()}
        panels.append(f"<h3>Time, median per picture</h3>{_timings(medians)}")
    return f'<div class="panels">{"".join(f"""<div class="card">{p}</div>""" for p in panels)}</div>' if panels else ""


def _index(entries: Sequence[Entry]) -> str:
    rows = []
    for number, entry in enumerate(entries):
        total = sum(entry.timings_ms.values())
        size = f"{entry.width} x {entry.height}" if entry.width else ""
        words = f"not restored: {entry.error}" if entry.error else summary(entry.levels)
        change = "" if entry.error else f"{entry.change:.1f}"
        rows.append(
            f'<tr><th scope="row"><a href="#p{number}">{escape(entry.name)}</a></th>'
            f'<td data-value="{entry.width * entry.height}">{size}</td><td class="words">{escape(words)}</td>'
            f'<td>{change}</td><td data-value="{total:.3f}">{_ms(total) if total else ""}</td></tr>'
        )
    headings = "".join(
        f'<th scope="col"{kind}><button type="button">{text}</button></th>' for text, kind in _COLUMNS.items()
    )
    table = f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="card scroll">{table}</div>'


def render(title: str, facts: dict[str, str], entries: Sequence[Entry], totals: Totals, footer: str) -> str:
    """The page as text. ``facts`` label and value for the head; ``entries`` in the order they shall appear."""
    done = [e for e in entries if not e.error]
    chips = {
        "restored": str(totals.restored),
        "failed": str(totals.failed),
        "megapixels": f"{totals.pixels / 1e6:.2f}",
        **facts,
    }
    missing = totals.restored + totals.failed - len(entries)
    items = "".join(f"<li><b>{escape(v)}</b><span>{escape(k)}</span></li>" for k, v in chips.items())
    body = [
        '<a class="skip" href="#pictures">Skip to the pictures</a>',
        f'<header><h1>{escape(title)}</h1><p class="quiet">Drag across a picture, or focus it and use the arrow keys, '
        "to compare it with what came in.</p>",
        f'<ul class="facts">{items}</ul></header>\n<main>',
        _overview(done),
    ]
    if len(entries) > 1:
        body.append(f"<h2>All pictures</h2>{_index(entries)}")
    body.append('<h2 id="pictures">Before and after</h2>')
    body += [_entry(entry, number) for number, entry in enumerate(entries)]
    if missing:
        body.append(f'<p class="quiet">{missing} more pictures were counted, but are not listed.</p>')
    body.append(f"</main><footer><p>{escape(footer)}</p></footer>")
    return page(title, "\n".join(body))
