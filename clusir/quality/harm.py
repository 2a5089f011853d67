"""Do no harm: how far a restorer moves photos that were not degraded.

Each picture is restored as it is, and compared with itself. What matters is the tail: a mean over photos hides the one
that a person cares about. What restores is a function from picture to picture, as in :mod:`clusir.quality.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.markdown import table
from clusir.quality.evaluate import list_pictures, read_picture
from clusir.quality.metrics import psnr

__all__ = ["HARMLESS_DB", "HarmRow", "HarmTable", "contact_sheet", "harm_table"]

Bytes = NDArray[np.uint8]

HARMLESS_DB = 38.0
"""What comes back at least so close to what went in cannot be told from it side by side."""

_CAP_DB = 60.0
_QUANTILES = (0.0, 0.02, 0.1, 0.25, 0.5)
_SHEET_ROWS, _THUMB_PX = 8, 320


@dataclass(frozen=True)
class HarmRow:
    """One picture: PSNR of what came out against what went in, and how far the mean of a channel moved at most, in
    levels of 255."""

    name: str
    psnr_db: float
    shift: float


@dataclass(frozen=True)
class HarmTable:
    """The rows, worst first, and what they were measured on and with."""

    folder: str
    model: str
    rows: tuple[HarmRow, ...]

    def quantile(self, share: float) -> float:
        """PSNR in dB that this share of the pictures stays below."""
        return float(np.quantile([row.psnr_db for row in self.rows], share))

    @property
    def harmless(self) -> int:
        return sum(row.psnr_db >= HARMLESS_DB for row in self.rows)

    @property
    def moved(self) -> int:
        """Pictures of which the mean of a channel moved by over a level."""
        return sum(not row.shift <= 1.0 for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, the quantiles and the counts."""
        found = {f"{share:g}": self.quantile(share) for share in _QUANTILES}
        return {**asdict(self), "quantiles_db": found, "harmless": self.harmless, "moved": self.moved}

    def to_markdown(self, worst: int = _SHEET_ROWS) -> str:
        """One line of figures, and the ``worst`` pictures as a Markdown table."""
        count = len(self.rows)
        least, second, tenth, quarter, median = (f"{self.quantile(share):.1f}" for share in _QUANTILES)
        head = (
            f"{self.harmless} of {count} at {HARMLESS_DB:.0f} dB or better; worst {least}, 2 % below {second}, "
            f"10 % below {tenth}, 25 % below {quarter}, median {median} dB; "
            f"{self.moved} of {count} means moved by over a level"
        )
        cells = [[row.name, f"{row.psnr_db:.1f}", f"{row.shift:.1f}"] for row in self.rows[:worst]]
        return head + "\n\n" + table(["the worst", "dB to the input", "shift of the mean"], cells)


def harm_table(
    folder: str | Path,
    restore: Callable[[Bytes], Bytes],
    *,
    model: str = "",
    limit: int | None = None,
    observe: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> HarmTable:
    """Restore every picture of ``folder`` and compare it with itself.

    ``restore``: HxWx3 uint8 to the same. ``limit`` takes that many pictures at even distances. Raises UsageError for
    an empty folder, ImageError for a file that is no picture.
    """
    paths = list_pictures(folder, limit)
    rows = []
    for done, path in enumerate(paths, 1):
        before = read_picture(path)
        rows.append(_row(path.relative_to(folder).as_posix(), before, restore(before)))
        observe(path.name, done, len(paths))
    return HarmTable(str(folder), model, tuple(sorted(rows, key=lambda row: row.psnr_db)))


def contact_sheet(table: HarmTable, restore: Callable[[Bytes], Bytes], rows: int = _SHEET_ROWS) -> Image.Image:
    """The worst pictures, before and after side by side, each at most 320 px."""
    strips = []
    for row in table.rows[:rows]:
        before = read_picture(Path(table.folder) / row.name)
        strips.append([_thumbnail(before), _thumbnail(restore(before))])
    sheet = Image.new("RGB", (2 * _THUMB_PX, sum(max(t.height for t in strip) for strip in strips)), "white")
    top = 0
    for strip in strips:
        for column, thumbnail in enumerate(strip):
            sheet.paste(thumbnail, (column * _THUMB_PX, top))
        top += max(thumbnail.height for thumbnail in strip)
    return sheet


def failures(table: HarmTable, *, least_db: float = 34.0, share: float = 0.96) -> Iterable[str]:
    """What a release must not ship: a picture far from itself, too many that can be told from it, a mean that moved."""
    worst = table.rows[0]
    if not worst.psnr_db >= least_db:
        yield f"{worst.name} comes back at {worst.psnr_db:.1f} dB, below {least_db:.0f}"
    if not table.harmless >= share * len(table.rows):
        yield f"{table.harmless} of {len(table.rows)} pictures at {HARMLESS_DB:.0f} dB, fewer than {share:.0%}"
    if table.moved:
        yield f"the mean of {table.moved} pictures moved by over a level"


def _row(name: str, before: Bytes, after: Bytes) -> HarmRow:
    a, b = (picture.astype(np.float64) / 255.0 for picture in (before, after))
    shift = float(np.abs((a - b).mean(axis=(0, 1))).max()) * 255.0
    return HarmRow(name, min(psnr(a, b), _CAP_DB), shift)


def _thumbnail(picture: Bytes) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((_THUMB_PX, _THUMB_PX))
    return image
