"""``--report``: collects what happened to each picture and writes one self-contained HTML page.

Pictures are kept as compressed thumbnails from the moment they are added, so a report of a thousand pictures needs the
memory of its file: at most ``budget_mb``. Beyond that budget pictures are listed with their figures, without pixels,
and beyond ``limit`` pictures they are only counted: a page of a million rows helps nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusir.atomic import write_whole
from clusir.errors import ImageError
from clusir.runtimes.images.names import as_text
from clusir.runtimes.images.thumbnails import Picture, data_uri, eight_bit, most_changed, shrunk
from clusir.runtimes.restore.explain import Account

__all__ = ["Entry", "Pair", "ReportWriter", "Totals"]

_OVERVIEW_PX = 900
_DETAIL_PX = 320


@dataclass(frozen=True)
class Pair:
    """Two thumbnails of one size as data addresses; ``exact`` where one pixel of the picture is one pixel here."""

    before: str
    after: str
    width: int
    height: int
    caption: str
    exact: bool


@dataclass(frozen=True)
class Entry:
    """One picture of the report. ``change`` is the mean absolute difference of before and after, in 8-bit levels."""

    name: str
    width: int
    height: int
    pairs: tuple[Pair, ...] = ()
    account: Account = field(default_factory=Account)
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    change: float = 0.0
    error: str = ""
    note: str = ""


@dataclass
class Totals:
    """Counts over all pictures, those that the page does not list included."""

    restored: int = 0
    failed: int = 0
    pixels: int = 0


class ReportWriter:
    """Collects pictures (from any thread) and writes the page.

    ``facts`` are label and value pairs for the head of the page, such as backend, model and precision; ``footer`` is
    one line, such as :func:`clusir.runtimes.machine.fingerprint.describe`. ``budget_mb`` bounds the thumbnails, hence
    the page.
    """

    def __init__(
        self,
        title: str = "Restored pictures",
        facts: Mapping[str, str] | None = None,
        footer: str = "",
        budget_mb: float = 40.0,
        limit: int = 2000,
    ) -> None:
        self.title = title
        self.facts = dict(facts or {})
        self.footer = footer
        self.entries: list[Entry] = []
        self.totals = Totals()
        self._limit = limit
        self._left = int(budget_mb * 1e6)
        self._lock = threading.Lock()

    def add(
        self,
        name: str,
        before: Picture,
        after: Picture,
        *,
        account: Account | None = None,
        size: tuple[int, int] | None = None,
        timings_ms: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Add a restored picture.

        ``before`` and ``after``: [H,W] or [H,W,1..4] of uint8, uint16 or float 0..1, one height and width.
        ``account`` is what the model says of the picture (:func:`clusir.runtimes.restore.explain.account`).
        ``size`` is the picture's (width, height) where the arrays are a thinned copy of a huge one. ``timings_ms``
        names the steps in their order, for example decode, infer, encode. Raises ImageError where the sizes differ.
        """
        if np.shape(before)[:2] != np.shape(after)[:2]:
            raise ImageError(f"report: {name}: before is {np.shape(before)[:2]} and after {np.shape(after)[:2]} pixels")
        width, height = size or np.shape(before)[1::-1]
        with self._lock:
            self.totals.restored += 1
            self.totals.pixels += width * height
            if len(self.entries) >= self._limit:
                return
        small = [shrunk(eight_bit(p), _OVERVIEW_PX) for p in (before, after)]
        change = float(np.abs(small[0].astype(np.int16) - small[1].astype(np.int16)).mean())
        with self._lock:
            room = self._left > 0
        pairs = self._pairs(before, after, small, (width, height)) if room else ()
        entry = Entry(name, width, height, pairs, account or Account(), dict(timings_ms or {}), change, "", note)
        with self._lock:
            self._left -= sum(len(p.before) + len(p.after) for p in pairs)
            self.entries.append(entry)

    def add_failure(self, name: str, reason: str) -> None:
        """Add a picture that could not be restored, with the one-line reason."""
        with self._lock:
            self.totals.failed += 1
            if len(self.entries) < self._limit:
                self.entries.append(Entry(name, 0, 0, error=reason))

    @staticmethod
    def _pairs(
        before: Picture, after: Picture, small: list[NDArray[np.uint8]], size: tuple[int, int]
    ) -> tuple[Pair, ...]:
        width, height = size
        h, w = small[0].shape[:2]
        whole = (h, w) == (height, width)
        caption = "The whole picture" + ("" if whole else f", shrunk to {100 * w / width:.0f} %")
        pairs = [Pair(data_uri(small[0]), data_uri(small[1]), w, h, caption, whole)]
        thinned = np.shape(before)[:2] != (height, width)
        if max(height, width) > _DETAIL_PX * 1.5 and not thinned:
            rows, cols = most_changed(eight_bit(before), eight_bit(after), _DETAIL_PX)
            crops = [eight_bit(np.asarray(p)[rows, cols]) for p in (before, after)]
            h, w = crops[0].shape[:2]
            caption = f"The part that changed most, pixel for pixel ({w} x {h} at {cols.start}, {rows.start})"
            pairs.append(Pair(data_uri(crops[0], 95), data_uri(crops[1], 95), w, h, caption, True))
        return tuple(pairs)

    def write(self, path: str | Path, like: Path | None = None) -> Path:
        """Write the page to ``path``, whole or not at all, no more open to others than ``like``. Raises ImageError
        where it cannot be written."""
        from clusir.runtimes.report.html import render

        path = Path(path)
        with self._lock:
            text = render(self.title, self.facts, sorted(self.entries, key=lambda e: e.name), self.totals, self.footer)
        page = as_text(text).encode("utf-8")  # a file name may hold bytes that are no text
        return write_whole(path, lambda stream: stream.write(page), "report", like)
