"""How far an artefact may be from the reference: one table, and no default anywhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from clusir.errors import UsageError

__all__ = ["GATE_MARGIN", "TOLERANCES", "Tolerance", "tolerance", "widened"]

# Two runtimes may order experts differently only where the k-th and the next probability are closer than this.
GATE_MARGIN = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """``max_abs``: largest absolute difference of any pixel, in units of the 0..1 range (None: not bounded, because
    single pixels may move); ``psnr_db``: least agreement; ``gates_equal``: the same experts wherever the margin is
    above GATE_MARGIN; ``flip_share``: where they may differ, in which share of a file's decisions at most.
    ``routing_db``: least agreement of posterior, gate, probabilities and statistics (None: as the picture).
    ``relative``: differences are taken relative to the largest magnitude of an output, where that is above 1.
    """

    max_abs: float | None
    psnr_db: float
    gates_equal: bool
    routing_db: float | None = None
    flip_share: float = 0.0
    relative: bool = False


TOLERANCES = {
    "fp32": Tolerance(max_abs=1e-4, psnr_db=90.0, gates_equal=True),
    # float32 on CUDA sums in another order; TF32 is off.
    "fp32:cuda": Tolerance(max_abs=1e-3, psnr_db=80.0, gates_equal=True),
    "fp16": Tolerance(max_abs=None, psnr_db=60.0, gates_equal=False, routing_db=40.0, flip_share=0.05),
    "fp16:cuda": Tolerance(max_abs=None, psnr_db=55.0, gates_equal=False, routing_db=40.0, flip_share=0.05),
    # Somebody else's network, whose outputs may be of any magnitude.
    "brought": Tolerance(max_abs=1e-4, psnr_db=80.0, gates_equal=True, relative=True),
    # What INT8 may cost is bounded as quality against ground truth (export/quantize); this bound only catches a
    # broken file.
    "int8": Tolerance(max_abs=None, psnr_db=30.0, gates_equal=False, routing_db=20.0, flip_share=0.2),
}


def tolerance(precision: str, device: str = "cpu") -> Tolerance:
    """The row for a precision on a device. Raises UsageError for a precision that is not in the table."""
    row = TOLERANCES.get(f"{precision}:{device}") or TOLERANCES.get(precision)
    if row is None:
        raise UsageError(f"no tolerance for precision {precision!r}; there are {', '.join(TOLERANCES)}")
    return row


def widened(bound: Tolerance, allowed: float) -> Tolerance | None:
    """A bound within which answers may differ by ``allowed`` in all; None where it allows as much already."""
    if not allowed > (bound.max_abs or 0.0):
        return None
    return replace(bound, max_abs=allowed, psnr_db=-20 * math.log10(allowed))
