"""The page of an export: its report as Markdown, rendered by markdown-it into the same page as a run's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clusir.markdown import table
from clusir.runtimes.report.html import template

__all__ = ["as_markdown", "write_page"]

_PAGE = """{% extends "page.html" %}
{% block body %}
<main class="document">
{{ text | safe }}
{% for drawing in drawings %}<figure>{{ drawing | safe }}</figure>
{% endfor %}
</main>
{% endblock %}
"""


def as_markdown(title: str, report: Mapping[str, Any], sections: Sequence[str] = ()) -> str:
    """An export's report as Markdown: files, passes, parity (the worst over degradations), then ``sections``."""
    files = [(g["file"], g["graph"], g["bytes"]) for g in report["graphs"]]
    files += [(data["file"], "weights", data["bytes"]) for data in report["weights"]]
    graphs = [(f"`{name}`", what, f"{size / 1e6:.2f}") for name, what, size in files]
    passes = [
        (p["name"], "yes" if p["modified"] else "no", "; ".join(p["notes"])) for p in report["graphs"][0]["passes"]
    ]
    head = ("artefact", "runner", "size", "batch", "within bounds", "max abs", "dB", "other experts")
    return "\n\n".join((
        f"# {title}",
        f"## Files\n\n{table(('file', 'graph', 'MB'), graphs, left=2)}",
        f"## Passes\n\n{table(('pass', 'changed', 'notes'), passes, left=3)}",
        f"## Parity with PyTorch\n\nWorst over the degradations.\n\n{table(head, _parity(report['parity']), left=5)}",
        *sections,
    ))  # fmt: skip


def _parity(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["artefact"], row["runner"], row["size"], str(row["batch"])), []).append(row)
    return [
        (*key, "yes" if all(r["ok"] for r in group) else "**NO**", f"{max(r['max_abs'] for r in group):.1e}",
         f"{min(r['psnr_db'] for r in group):.1f}", str(sum(r["flips"] for r in group)))
        for key, group in groups.items()
    ]  # fmt: skip


def write_page(path: Path, title: str, text: str, drawings: Sequence[Path] = ()) -> None:
    """One self-contained HTML page of Markdown ``text``; ``drawings`` are SVG files of this package to put into it.

    HTML in the text is shown, not obeyed: names and reasons come from models.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("js-default").render(text)
    drawn = [drawing.read_text(encoding="utf-8") for drawing in drawings]
    path.write_text(template(_PAGE).render(title=title, text=body, drawings=drawn), encoding="utf-8")
