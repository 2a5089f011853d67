"""What the lower precisions of a model lose, measured when it was exported: ``NAME.losses.json`` beside ``NAME.onnx``.

The file names the SHA-256 of the files that were measured, so that figures of other files are never believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusir.names import BFLOAT16
from clusir.runtimes.runners.files import ModelFiles

__all__ = ["MEAN_DB", "WORST_DB", "Loss", "losses_path", "losses_text", "read_losses"]

MEAN_DB, WORST_DB = 0.1, 0.3
"""What ``--precision auto`` may lose: in the mean of the degradations, and on the worst of them."""

_FORMAT = 1


@dataclass(frozen=True)
class Loss:
    """Decibels of PSNR lost against float32 on one backend: in the mean of the degradations, and on the ``worst``."""

    mean_db: float
    worst_db: float
    worst: str

    @property
    def small(self) -> bool:
        """Whether it is within the bounds; what is no number is not."""
        return self.mean_db <= MEAN_DB and self.worst_db <= WORST_DB


def losses_path(whole: Path) -> Path:
    """Where the losses of a float32 graph's variants stand."""
    return whole.with_name(f"{whole.stem}.losses.json")


def losses_text(losses: Mapping[tuple[str, str], Loss], digests: Mapping[str, str]) -> str:
    """The content of the file: ``losses`` by backend and precision, ``digests`` (:meth:`ModelFiles.sha256`) of fp32 and
    of every other precision that is a file."""
    rows = [{"backend": b, "precision": p, **asdict(loss)} for (b, p), loss in losses.items()]
    # JSON knows no infinity; a loss without bound is a row that says nothing.
    rows = [row for row in rows if math.isfinite(row["mean_db"]) and math.isfinite(row["worst_db"])]
    return json.dumps({"format": _FORMAT, "sha256": dict(digests), "losses": rows}, indent=1, allow_nan=False) + "\n"


def read_losses(variants: Mapping[str, ModelFiles]) -> dict[tuple[str, str], Loss]:
    """By backend and precision, for the files that are there (:func:`clusir.runtimes.runners.files.variants`).

    Empty where no file says so, where it cannot be read, and where the float32 files are others than those measured;
    without the precisions whose files are others.
    """
    if "fp32" not in variants:
        return {}
    try:
        data = json.loads(losses_path(variants["fp32"].whole).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT or data["sha256"]["fp32"] != variants["fp32"].sha256():
            return {}
        same = {"fp32", BFLOAT16} | {
            precision for precision, files in variants.items() if data["sha256"].get(precision) == files.sha256()
        }
        return {key: loss for row in data["losses"] for key, loss in [_read(row)] if key[1] in same}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read(row: dict[str, Any]) -> tuple[tuple[str, str], Loss]:
    loss = Loss(float(row["mean_db"]), float(row["worst_db"]), str(row["worst"]))
    return (str(row["backend"]), str(row["precision"])), loss
