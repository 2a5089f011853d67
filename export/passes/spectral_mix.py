"""Filters that mix sines with cosines, in the real Fourier basis: oriented masks and complex multipliers.

A filter answers the waves (fy, fx) and (fy, -fx) by two complex numbers. In the real basis that is a sum of four: keep
each coefficient, turn the width's waves by a quarter (cosine to sine), turn the height's, turn both, each times a
constant. A turn only exchanges coefficients, so it is a Gather, and its signs are part of the constants. Where a
frequency has no sine (0, and N/2) the constant of the turn comes out as zero, which is what irfft2 makes of such bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clusir.export.graph.edit import GraphEdit
from clusir.export.lowering.plan import RealPlan

__all__ = ["mix", "mixing"]

Real = NDArray[np.float64]
_NOTHING = 1e-6  # of the largest answer: a turn below this is rounding


def mixing(response: NDArray[np.complex128], rows: RealPlan, columns: RealPlan) -> list[Real | None]:
    """The four constants [H, W] in the order of the coefficients: kept, width turned, height turned, both turned.

    ``response`` [H, W] is that of a real filter, in the order of fft2. The height's turn exchanges last, so the last
    two stand where their coefficient comes from. None for a turn that the filter does not use.
    """
    there = response[rows.frequency[:, None], columns.frequency]
    mirrored = response[rows.frequency[:, None], -columns.frequency % columns.n]
    even, odd = (there + mirrored) / 2, (there - mirrored) / 2
    across = np.where(columns.is_sine, -1.0, 1.0)
    along = np.where(rows.is_sine, -1.0, 1.0)[rows.partner(), None]
    parts = (even.real, odd.imag * across, even.imag * along, -odd.real * across * along)
    least = _NOTHING * float(np.abs(response).max())
    return [part if float(np.abs(part).max()) > least else None for part in parts]


def mix(
    edit: GraphEdit,
    value: str,
    response: NDArray[np.complex128],
    plans: tuple[RealPlan, RealPlan],
    shape: list[int],
    width_first: bool,
    hint: str,
) -> str:
    """Filter coefficients of ``shape`` [..., H, W], or [W, ..., H], by at most four products with constants and two
    exchanges. ``response`` [H, W] as for :func:`mixing`, not all zeros; ``plans`` of the rows and of the columns."""
    rows, columns = plans
    last = len(shape) - 1
    across, along = (0, last) if width_first else (last, last - 1)
    parts = mixing(response, rows, columns)
    if width_first:
        parts = [p if p is None else p.T.reshape(columns.n, *[1] * (last - 1), rows.n) for p in parts]
    kept, wide, high, both = parts

    def product(of: str, constant: Real | None, name: str) -> str | None:
        if constant is None:
            return None
        return edit.node("Mul", [of, edit.constant(constant, f"{hint}/{name}_factor")], f"{hint}/{name}")

    def total(a: str | None, b: str | None, name: str) -> str | None:
        return a or b if a is None or b is None else edit.node("Add", [a, b], f"{hint}/{name}")

    turned = value
    if wide is not None or both is not None:
        turned = _exchanged(edit, value, columns, shape, across, f"{hint}/width_turned")
    straight = total(product(value, kept, "kept"), product(turned, wide, "wide"), "straight")
    upright = total(product(value, high, "high"), product(turned, both, "both"), "upright")
    if upright is not None:
        upright = _exchanged(edit, upright, rows, shape, along, f"{hint}/height_turned")
    result = total(straight, upright, "mixed")
    assert result is not None, "a response of zeros is no filter"
    return result


def _exchanged(edit: GraphEdit, value: str, axis: RealPlan, shape: list[int], place: int, hint: str) -> str:
    """Sines where their cosines were, and the reverse, along the axis at ``place``."""
    if place < len(shape) - 1 or axis.n % 2:
        return edit.node("Gather", [value, edit.constant(axis.partner(), f"{hint}_order", np.int64)], hint, axis=place)
    # The last axis ONNX Runtime gathers number by number. In a plan of even length sines lie half a block behind their
    # cosines, and to exchange half blocks is three times as fast.
    half = axis.n // max(axis.factor, 2)
    value = edit.reshape(value, [*shape[:-1], axis.n // (2 * half), 2, half], f"{hint}_halves")
    order = edit.constant([1, 0], f"{hint}_order", np.int64)
    value = edit.node("Gather", [value, order], f"{hint}_turned", axis=len(shape))
    return edit.reshape(value, shape, hint)
