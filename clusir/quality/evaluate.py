"""Quality against ground truth: one row per degradation, next to classical baselines.

Protocol: clean RGB photos are degraded with seed 0, clipped and quantised to 8 bit; the restored picture is clipped and
quantised too; PSNR and SSIM over RGB and the whole picture; the mean over photos. SSIM takes means over 7x7 boxes
(scikit-image's default): papers take an 11x11 Gaussian window, which gives lower numbers, so the two do not compare.
What restores is a function from picture to picture, for example :meth:`clusir.Restorer.restore`: tiles, backend and
precision are its business.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.recipe import KINDS, PRESETS, Recipe, draw_step
from clusir.errors import UsageError
from clusir.markdown import table
from clusir.quality.baselines import BASELINES, require_skimage
from clusir.quality.metrics import psnr, ssim
from clusir.runtimes.images.open import open_picture
from clusir.runtimes.images.thumbnails import eight_bit

__all__ = ["ROWS", "QualityPlan", "QualityRow", "QualityTable", "list_pictures", "make_recipe", "quality_table"]

Bytes = NDArray[np.uint8]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_CLEAN_CAP_DB = 60.0  # an untouched clean picture has infinite PSNR, which no mean survives

ROWS: tuple[str, ...] = (*PRESETS, *(f"{kind} (middle)" for kind in KINDS))
"""Every row there is: the named presets, then each kind at severity 0.5."""


@dataclass(frozen=True)
class QualityRow:
    """Means over ``pictures`` of one degradation. PSNR in dB; ``baselines``: name -> {"psnr_db", "ssim"}."""

    name: str
    pictures: int
    input_psnr_db: float
    input_ssim: float
    psnr_db: float
    ssim: float
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def gain_db(self) -> float:
        return self.psnr_db - self.input_psnr_db

    def best_baseline(self) -> tuple[str, float] | None:
        """Name and PSNR of the best baseline, or None where none ran."""
        named = ((name, figures["psnr_db"]) for name, figures in self.baselines.items())
        return max(named, key=lambda item: item[1], default=None)


@dataclass(frozen=True)
class QualityTable:
    """The rows, and what they were measured on and with."""

    folder: str
    model: str
    seed: int
    rows: tuple[QualityRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and ``gain_db`` in each row."""
        return {**asdict(self), "rows": [{**asdict(row), "gain_db": row.gain_db} for row in self.rows]}

    def to_markdown(self) -> str:
        """A Markdown table; the last column appears where baselines ran."""
        compared = any(row.baselines for row in self.rows)
        head = ["degradation", "input dB", "restored dB", "gain dB", "input SSIM", "restored SSIM"]
        head += ["best baseline dB"] if compared else []
        rows = []
        for row in self.rows:
            cells = [row.name, f"{row.input_psnr_db:.2f}", f"{row.psnr_db:.2f}", f"{row.gain_db:+.2f}"]
            cells += [f"{row.input_ssim:.3f}", f"{row.ssim:.3f}"]
            if compared:
                best = row.best_baseline()
                cells.append(f"{best[1]:.2f} ({best[0]})" if best else "")
            rows.append(cells)
        return table(head, rows)


def list_pictures(folder: str | Path, limit: int | None = None) -> list[Path]:
    """The pictures under ``folder``, by name; ``limit`` takes that many at even distances. UsageError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name a folder of clean photos")
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} is not at least 1")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UsageError(f"{folder} holds no picture ({', '.join(sorted(_SUFFIXES))}); name a folder of clean photos")
    if limit is None or limit >= len(paths):
        return paths
    return [paths[round(i * (len(paths) - 1) / max(limit - 1, 1))] for i in range(limit)]


def read_picture(path: Path) -> Bytes:
    """HxWx3 uint8, upright, as ``clusir-run`` reads it. Raises ImageError."""
    picture = open_picture(path)
    return eight_bit(picture.rows(0, picture.height))


def make_recipe(row: str, seed: int, name: str) -> Recipe:
    """The degradation of the picture file ``name`` in ``row``; it depends on nothing else, so subsets give the same
    pixels.

    Raises UsageError for a row that is not in ``ROWS``.
    """
    if row not in ROWS:
        raise UsageError(f"unknown degradation row {row!r}; there are {', '.join(ROWS)}")
    rng = np.random.default_rng([seed, zlib.crc32(row.encode()), zlib.crc32(name.encode())])
    if row in PRESETS:
        return PRESETS[row](rng)
    return Recipe((draw_step(row.removesuffix(" (middle)"), 0.5, rng),), int(rng.integers(2**63)))


@dataclass(frozen=True)
class QualityPlan:
    """What is measured. ``limit`` takes that many pictures at even distances (None: all); ``baselines`` adds classical
    filters, which takes seconds per picture."""

    rows: Sequence[str] = ROWS
    limit: int | None = None
    seed: int = 0
    baselines: bool = False
    with_ssim: bool = True


def quality_table(
    folder: str | Path,
    restore: Callable[[Bytes], Bytes],
    plan: QualityPlan | None = None,
    *,
    model: str = "",
    observe: Callable[[str, int, int], None] = lambda row, done, total: None,
) -> QualityTable:
    """Degrade every picture of ``folder`` in each row of ``plan``, restore it, and measure.

    ``restore``: HxWx3 uint8 to the same (called once per picture and row). ``model`` is a name for the heading.
    ``observe(row, done, total)`` is called after every picture. Raises UsageError for an unknown row or an empty
    folder, ImageError for a file that is no picture, BackendError where scikit-image is missing and needed.
    """
    plan = plan or QualityPlan()
    unknown = [row for row in plan.rows if row not in ROWS]
    if unknown:
        raise UsageError(f"unknown degradation row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if plan.baselines or plan.with_ssim:
        require_skimage()
    paths = list_pictures(folder, plan.limit)
    measured = []
    total, done = len(paths) * len(plan.rows), 0
    for row in plan.rows:
        figures: dict[str, list[tuple[float, float]]] = {}
        for path in paths:
            clean = read_picture(path)
            degraded = make_recipe(row, plan.seed, path.name).apply(clean.astype(np.float32) / np.float32(255.0))
            results = {"input": _to_bytes(degraded), "model": restore(_to_bytes(degraded))}
            if plan.baselines:
                results |= {name: _to_bytes(run(degraded)) for name, run in BASELINES.get(row, {}).items()}
            for name, picture in results.items():
                figures.setdefault(name, []).append(_measure(picture, clean, plan.with_ssim))
            done += 1
            observe(row, done, total)
        measured.append(_row(row, figures))
    return QualityTable(str(folder), model, plan.seed, tuple(measured))


def _to_bytes(image: NDArray[np.floating[Any]]) -> Bytes:
    levels: Bytes = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def _measure(picture: Bytes, clean: Bytes, with_ssim: bool) -> tuple[float, float]:
    a, b = (array.astype(np.float32) / np.float32(255.0) for array in (picture, clean))
    # SSIM in float32 is a thousandth off on dark pictures: its variances are differences of almost equal sums.
    similarity = ssim(a.astype(np.float64), b.astype(np.float64)) if with_ssim else float("nan")
    return min(psnr(a, b), _CLEAN_CAP_DB), similarity


def _row(name: str, figures: dict[str, list[tuple[float, float]]]) -> QualityRow:
    means = {key: np.mean(values, axis=0) for key, values in figures.items()}
    before, after = means.pop("input"), means.pop("model")
    others = {key: {"psnr_db": float(mean[0]), "ssim": float(mean[1])} for key, mean in means.items()}
    plain = (float(before[0]), float(before[1]), float(after[0]), float(after[1]))
    return QualityRow(name, len(figures["input"]), *plain, baselines=others)


def failures(table: QualityTable, *, clean_floor_db: float = 38.0) -> Iterable[str]:
    """What a release must not ship: rows that end below their input, and a clean picture that does not stay clean."""
    for row in table.rows:
        if row.name == "clean":
            if row.psnr_db < clean_floor_db:
                yield f"clean pictures fall to {row.psnr_db:.2f} dB, below {clean_floor_db:.0f}"
        elif row.gain_db <= 0:
            yield f"{row.name}: {row.psnr_db:.2f} dB is not above its input, {row.input_psnr_db:.2f}"
