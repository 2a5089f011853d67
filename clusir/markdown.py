"""Markdown tables, as reports and documentation have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table that ends with a newline; the first ``left`` columns are words, the others figures.

    A vertical bar in a cell is escaped, a line break becomes a space.
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * left + "---:|" * (len(head) - left)]
    lines += ["| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
