"""The one comparison: what an artefact answers, held against what it should answer. Nothing else may say "right".

NumPy only, so that every part of an export may ask it. A comparison of nothing is a failure, and so is a value that is
not finite, a missing output, another shape. Bounds are tested as ``not (x <= bound)``, which NaN does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ValidationError
from clusir.export.validate.tolerances import GATE_MARGIN, Tolerance
from clusir.quality.metrics import psnr

__all__ = ["ROUTING", "Agreement", "Difference", "Gates", "check", "compare", "measure", "route_flips"]

Array = NDArray[Any]

# Outputs that lower precisions may move further than the picture: they are held to Tolerance.routing_db.
ROUTING = ("posterior", "gate", "expert_probability", "statistics")


@dataclass(frozen=True)
class Difference:
    """Two arrays. ``max_abs``: largest absolute difference; ``psnr_db``: with a peak of 1; ``relative``: root mean
    square of the difference over that of the expected values. Where ``fault`` says why they cannot be compared:
    inf, -inf, inf."""

    count: int
    max_abs: float
    psnr_db: float
    relative: float
    fault: str = ""


@dataclass(frozen=True)
class Gates:
    """How gates are compared. ``experts``: their number at each level, of which ``top_k`` run; ``probability``: the
    reference's, before top-k, BxsumE, or None where it is not known: then no choice is a near tie."""

    experts: tuple[int, ...]
    top_k: int
    probability: Array | None = None

    def fit(self, gate: Array) -> bool:
        """Whether a gate can be read so."""
        known = self.probability is None or self.probability.shape == gate.shape
        return gate.ndim == 2 and gate.size > 0 and gate.shape[1] == sum(self.experts) and known

    def levels(self) -> list[slice]:
        """The columns of each level."""
        return [slice(start, stop) for start, stop in pairwise(accumulate(self.experts, initial=0))]


@dataclass(frozen=True)
class Agreement:
    """What one comparison found. ``outputs`` and ``count``: what was compared, names and numbers of values.

    ``max_abs`` and ``psnr_db`` are the worst of the outputs that are held to them (inf and -inf where something cannot
    be compared); ``routing_db`` is the worst of those held to ``Tolerance.routing_db``, inf where there is none.
    ``flips``: samples-and-levels, of ``decisions``, whose chosen experts differ although the margin allowed no doubt.
    ``fault`` says in one sentence what is wrong; empty means right. ``allowed``: how far off it might be because its
    reference is no surer; 0 where the table's bound held.
    """

    outputs: tuple[str, ...]
    count: int
    max_abs: float
    psnr_db: float
    routing_db: float = float("inf")
    flips: int = 0
    decisions: int = 0
    fault: str = ""
    allowed: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.fault


def measure(expected: Array, actual: Array, *, scale: float = 1.0, not_finite: bool = False) -> Difference:
    """The difference of two arrays, both divided by ``scale`` first.

    ``not_finite``: whether places where both hold the same infinity, or both NaN, count as equal (masks inside a graph
    hold -inf); otherwise a value that is not finite is a fault.
    """
    expected, actual = np.asarray(expected), np.asarray(actual)

    def bad(why: str) -> Difference:
        return Difference(int(actual.size), float("inf"), float("-inf"), float("inf"), why)

    if expected.shape != actual.shape:
        return bad(f"its shape is {_shape(actual)}, {_shape(expected)} is expected")
    if expected.size == 0:
        return bad("it is empty")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not (not_finite and np.array_equal(a[~finite], b[~finite], equal_nan=True)):
            where = "the reference's" if not np.isfinite(a).all() and np.isfinite(b).all() else "its"
            return bad(f"{where} values are not finite in {int((~finite).sum())} of {a.size} places")
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    if scale != 1:
        a, b = a / scale, b / scale
    difference = b - a
    size, error = (float(np.sqrt(np.mean(values**2))) for values in (a, difference))
    relative = error / size if size > 0 else (0.0 if error == 0 else float("inf"))
    return Difference(int(a.size), float(np.abs(difference).max()), psnr(b, a), relative)


def other_choices(gate: Array, reference: Array, gates: Gates) -> Array:
    """Which (sample, level) have other positive gates than the reference: bool B x levels."""
    differs = (gate > 0) != (reference > 0)
    return np.stack([differs[:, level].any(1) for level in gates.levels()], axis=1)


def route_flips(gate: Array, reference: Array, gates: Gates) -> Array:
    """Those of the other choices that no near tie excuses: bool B x levels. gate, reference: BxsumE.

    A near tie is a k-th and a next probability within GATE_MARGIN; of one, any ``top_k`` experts that are within the
    margin may be chosen, with the same sum of weights.
    """
    flips = other_choices(gate, reference, gates)
    if gates.probability is None or not flips.any():
        return flips
    k = gates.top_k
    for index, level in enumerate(gates.levels()):
        mine, wanted, probability = gate[:, level], reference[:, level], gates.probability[:, level]
        if k >= probability.shape[1]:
            continue
        ranked = np.sort(probability, axis=1)[:, ::-1]
        # Without a near tie there is nothing to excuse: a reference that chose otherwise is wrong itself.
        excused = (ranked[:, k - 1] - ranked[:, k] <= GATE_MARGIN) & ((mine > 0).sum(1) == k)
        excused &= ((mine <= 0) | (probability >= ranked[:, k - 1 : k] - GATE_MARGIN)).all(1)
        excused &= np.abs(mine.sum(1) - wanted.sum(1)) <= 2 * k * GATE_MARGIN
        flips[:, index] &= ~excused
    return flips


def compare(
    expected: Mapping[str, Array], actual: Mapping[str, Array], bound: Tolerance, gates: Gates | None = None
) -> Agreement:
    """Hold every output in ``actual`` against the one of the same name in ``expected``, within ``bound``.

    The two must hold the same names. ``gates``: how an output ``gate`` is read: a choice that a near tie leaves open
    may fall either way, any other is a flip. Never raises for what it is given: what is wrong is in ``fault``.
    """
    faults: list[str] = []
    missing, more = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    if missing:
        faults.append(f"output {missing[0]} is missing")
    if more:
        faults.append(f"output {more[0]} is not expected")
    names = tuple(name for name in expected if name in actual)
    count, max_abs, worst_db, routing_db = 0, 0.0, float("inf"), float("inf")
    flips = decisions = 0
    for name in names:
        want, got = np.asarray(expected[name]), np.asarray(actual[name])
        if name == "gate" and gates is not None and not gates.fit(want):
            faults.append(f"output gate: {_shape(want)} values are no levels of {gates.experts} experts")
        elif name == "gate" and gates is not None and want.shape == got.shape:
            flipped = route_flips(got, want, gates)
            flips, decisions = int(flipped.sum()), int(flipped.size)
            got = _without_other_choices(got, want, gates)
        largest = float(np.abs(want).max()) if bound.relative and want.size else 1.0
        found = measure(want, got, scale=max(1.0, largest) if np.isfinite(largest) else 1.0)
        count += found.count
        if found.fault:
            faults.append(f"output {name}: {found.fault}")
        if name in ROUTING and bound.routing_db is not None:
            routing_db = min(routing_db, found.psnr_db)
            if not found.fault and not (found.psnr_db >= bound.routing_db):
                faults.append(f"output {name}: {found.psnr_db:.1f} dB, at least {bound.routing_db:g} are needed")
            continue
        max_abs, worst_db = max(max_abs, found.max_abs), min(worst_db, found.psnr_db)
        if not found.fault:
            faults += [f"output {name}: {why}" for why in _over(found, bound)]
    if bound.gates_equal and flips:
        faults.append(f"other experts are chosen in {flips} of {decisions} cases")
    if not (count > 0):
        faults.append("nothing was compared")
    if faults:
        max_abs, worst_db = (max_abs, worst_db) if names else (float("inf"), float("-inf"))
    return Agreement(names, count, max_abs, worst_db, routing_db, flips, decisions, "; ".join(faults))


def _over(found: Difference, bound: Tolerance) -> list[str]:
    over = []
    if bound.max_abs is not None and not (found.max_abs <= bound.max_abs):
        over.append(f"differs by {found.max_abs:.2g}, at most {bound.max_abs:g} is allowed")
    if not (found.psnr_db >= bound.psnr_db):
        over.append(f"agrees to {found.psnr_db:.1f} dB, at least {bound.psnr_db:g} are needed")
    return over


def _without_other_choices(gate: Array, reference: Array, gates: Gates) -> Array:
    """The gate with the reference's values where another choice was made: that is counted, not measured."""
    kept = np.array(gate)
    other = other_choices(gate, reference, gates)
    for index, level in enumerate(gates.levels()):
        rows = other[:, index] & np.isfinite(gate[:, level]).all(1)
        kept[rows, level] = reference[rows, level]
    return kept


def check(agreement: Agreement, what: str) -> Agreement:
    """The same agreement where it is right. Raises ValidationError, which begins with ``what``, where it is not."""
    if not agreement.ok:
        raise ValidationError(f"{what}: {agreement.fault}")
    return agreement


def _shape(array: Array) -> str:
    sizes: Sequence[int] = array.shape
    return "x".join(map(str, sizes)) or "a number"
