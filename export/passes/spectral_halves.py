"""rfft2 and irfft2 of factorised sizes, around something that is done to every real and imaginary part alone.

With c and s the sums over cosines and sines of the height, then of the width, bin (+f, g) is (cc - ss, -(sc + cs)) and
bin (-f, g) is (cc + ss, sc - cs). So the height's cosines and sines are two products, P and Q; from P the width's make
[cc, -cs], from Q [-ss, -sc], each as one product; their sum is the spectrum at +f and their difference that at -f,
real parts first. No complex value, no twiddle, no mirrored row; the bins stay in the order in which the stages leave
them. What is done to a bin must not depend on where it stands. The inverse runs the transposes backwards; it takes the
mean of what +0 and -0 have become, as irfft2 takes of the bins that are their own mirror image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clusir.export.graph.edit import GraphEdit
from clusir.export.lowering.plan import HalfPlan

__all__ = ["there_and_back"]

Array = NDArray[np.float64]


def there_and_back(
    edit: GraphEdit,
    source: str,
    shape: tuple[int, ...],
    plans: tuple[HalfPlan, HalfPlan],
    scales: tuple[float, float],
    between: Callable[[str, int], str],
    hint: str,
) -> str:
    """irfft2 of what ``between`` makes of the rfft2 of ``source``, both ``shape`` [..., H, W]; ``plans`` of the height
    and the width, ``scales`` the factors of the transforms without a norm.

    ``between(value, sign)`` is given half of the spectrum, [W's blocks, 2 * places, ...], its real parts before the
    imaginary ones along axis 1, and returns the same shape; ``sign`` 0 is +f and 1 is -f of the height.
    """
    rows, columns = plans
    places = rows.cosines.shape[1]
    value = _rows_in(edit, source, rows, shape[-1], hint)
    halves = []
    for name, matrix, signs in (
        ("cosines", rows.cosines, (("cosines", 1.0), ("sines", -1.0))),
        ("sines", rows.sines, (("sines", -1.0), ("cosines", -1.0))),
    ):
        made = edit.node("MatMul", [edit.constant(matrix, f"{hint}/{name}"), value], f"{hint}/{name}_high")
        made = edit.reshape(made, [-1, shape[-1]], f"{hint}/{name}_flat")
        made = edit.node("Transpose", [made], f"{hint}/{name}_turned", perm=[1, 0])
        made = _left(edit, columns.stage1, edit.reshape(made, [columns.factor, -1], f"{hint}/{name}_long"), hint)
        made = edit.reshape(made, [columns.blocks, 2 * columns.rest, -1], f"{hint}/{name}_short")
        halves.append(_left(edit, scales[0] * _stacked(columns, signs), made, hint))
    spectrum = [between(edit.node(k, halves, f"{hint}/bins"), n) for n, k in enumerate(("Add", "Sub"))]
    weight = (scales[1] * np.where(columns.alone, 1.0, 2.0) * ~columns.again)[..., None]
    back = []
    for kind, signs in (("Add", (("cosines", 1.0), ("sines", -1.0))), ("Sub", (("sines", -1.0), ("cosines", -1.0)))):
        matrix = _stacked(columns, signs) * np.concatenate([weight, weight], 1)
        made = _left(edit, np.swapaxes(matrix, 1, 2), edit.node(kind, spectrum, f"{hint}/halves"), hint)
        made = _left(edit, columns.stage1.T, edit.reshape(made, [2 * columns.blocks, -1], f"{hint}/long_back"), hint)
        made = edit.reshape(made, [shape[-1], -1], f"{hint}/flat_back")
        made = edit.node("Transpose", [made], f"{hint}/turned_back", perm=[1, 0])
        back.append(edit.reshape(made, [-1, rows.blocks, places, shape[-1]], f"{hint}/high_back"))
    once = (np.where(rows.alone, 0.5, 1.0) * ~rows.again)[..., None]
    matrix = np.concatenate([rows.cosines * once, rows.sines * once], 1)
    value = _left(edit, np.swapaxes(matrix, 1, 2), edit.node("Concat", back, f"{hint}/rows_back", axis=2), hint)
    value = edit.reshape(value, [-1, 2 * rows.blocks, rows.rest * shape[-1]], f"{hint}/tall")
    return edit.reshape(_left(edit, rows.stage1.T, value, hint), [-1, *shape[1:]], f"{hint}/picture")


def _rows_in(edit: GraphEdit, source: str, rows: HalfPlan, width: int, hint: str) -> str:
    """The height's first stage: [pictures, blocks, 2 * N2, W]."""
    value = edit.reshape(source, [-1, rows.factor, rows.rest * width], f"{hint}/long_in")
    value = _left(edit, rows.stage1, value, hint)
    return edit.reshape(value, [-1, rows.blocks, 2 * rows.rest, width], f"{hint}/short_in")


def _left(edit: GraphEdit, matrix: Array, value: str, hint: str) -> str:
    return edit.node("MatMul", [edit.constant(matrix, f"{hint}/matrix"), value], f"{hint}/product")


def _stacked(plan: HalfPlan, signs: tuple[tuple[str, float], ...]) -> Array:
    return np.concatenate([sign * getattr(plan, name) for name, sign in signs], 1)
