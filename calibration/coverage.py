"""Who was seen during calibration: crops per degradation, and per expert of every routed level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.markdown import table

__all__ = ["Coverage", "active_experts", "measure_coverage"]


def active_experts(gate: NDArray[np.float32], experts: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    """For each row of ``gate`` (float32 B x sum of ``experts``) the (level, expert) pairs whose gate is not zero."""
    edges = np.cumsum((0, *experts))
    names = [(level, expert) for level, count in enumerate(experts) for expert in range(count)]
    if gate.ndim != 2 or gate.shape[1] != edges[-1]:
        raise ValueError(f"gate of shape {gate.shape} does not hold the {edges[-1]} experts of levels {tuple(experts)}")
    return [tuple(name for name, value in zip(names, row, strict=True) if value != 0) for row in gate]


@dataclass(frozen=True)
class Coverage:
    """Counts of crops.

    ``experts[level][e]``: crops that expert e of that level served; ``matrix[degradation]``: the same restricted to one
    degradation. ``minimum``: below that many crops an expert counts as under-served.
    """

    total: int
    minimum: int
    degradations: dict[str, int]
    experts: tuple[tuple[int, ...], ...] = ()
    matrix: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def under_served(self) -> tuple[tuple[int, int], ...]:
        """(level, expert) of every expert that fewer than ``minimum`` crops reached."""
        return tuple(
            (level, expert)
            for level, counts in enumerate(self.experts)
            for expert, count in enumerate(counts)
            if count < self.minimum
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total, "minimum": self.minimum, "degradations": self.degradations,
            "experts": [list(level) for level in self.experts],
            "matrix": {kind: [list(level) for level in levels] for kind, levels in self.matrix.items()},
            "under_served": [list(pair) for pair in self.under_served],
        }  # fmt: skip

    def to_markdown(self) -> str:
        """The coverage table: a row per degradation, a column per expert (``1.0`` = level 1, expert 0), sums below."""
        names = [f"{level + 1}.{expert}" for level, counts in enumerate(self.experts) for expert in range(len(counts))]
        rows = [
            [kind, str(count), *(str(value) for level in self.matrix.get(kind, ()) for value in level)]
            for kind, count in self.degradations.items()
        ]
        low = set(self.under_served)
        sums = [
            f"**{value}**" if (level, expert) in low else str(value)
            for level, counts in enumerate(self.experts)
            for expert, value in enumerate(counts)
        ]
        return table(["degradation", "crops", *names], [*rows, ["all", str(self.total), *sums]]).rstrip("\n")


def measure_coverage(
    kinds: Sequence[str],
    active: Sequence[tuple[tuple[int, int], ...]],
    degradations: Sequence[str],
    experts: Sequence[int],
    minimum: int,
) -> Coverage:
    """Count crops given, for each, its degradation and its active (level, expert) pairs."""
    counts = dict.fromkeys(degradations, 0)
    matrix = {kind: [[0] * count for count in experts] for kind in degradations}
    sums = [[0] * count for count in experts]
    for kind, pairs in zip(kinds, active, strict=True):
        counts[kind] += 1
        for level, expert in pairs:
            matrix[kind][level][expert] += 1
            sums[level][expert] += 1
    return Coverage(
        total=len(kinds),
        minimum=minimum,
        degradations=counts,
        experts=tuple(map(tuple, sums)),
        matrix={kind: tuple(map(tuple, levels)) for kind, levels in matrix.items()},
    )
