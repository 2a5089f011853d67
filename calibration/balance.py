"""Drawing a calibration set so that every degradation and every expert of every level gets its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusir.calibration.base import Array, CalibrationSource, Sample, batches
from clusir.calibration.coverage import Coverage, active_experts, measure_coverage
from clusir.errors import CalibrationError

__all__ = ["BalanceConfig", "Draw", "Route", "draw_balanced", "draw_blind"]

Route = Callable[[Array], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Bx3xHxW images to (posterior B x sum of clusters, gate B x sum of experts), both float32."""


@dataclass(frozen=True)
class BalanceConfig:
    """``size`` crops are drawn out of at most ``pool`` candidates.

    Every degradation and every expert should get ``share`` of what an equal split would give it (at least
    ``minimum``); an expert that ends with fewer than ``minimum`` crops is under-served.
    """

    size: int = 64
    pool: int = 512
    share: float = 0.5
    minimum: int = 4
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("size", "minimum", "batch"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"{name} {getattr(self, name)} of a calibration set is not at least 1")
        if self.pool < self.size:
            raise CalibrationError(f"a pool of {self.pool} candidates cannot give a set of {self.size} crops")
        if not 0 <= self.share <= 1:
            raise CalibrationError(f"share {self.share} of an equal split is not a number from 0 to 1")


@dataclass(frozen=True)
class Draw:
    """The chosen indices of the source, in rising order, their crops, and who is covered by them.

    ``gates`` is float32 N x sum of experts (N x 0 for a model without routing). ``routed`` candidates were looked at.
    """

    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    gates: NDArray[np.float32]
    coverage: Coverage
    routed: int


class _Pool:
    """Candidates in the source's order, routed on demand. Crops are drawn again rather than kept: pools are large."""

    def __init__(self, source: CalibrationSource, route: Route | None, experts: Sequence[int], batch: int) -> None:
        self.source, self.route, self.experts, self.batch = source, route, tuple(experts), batch
        self.kinds: list[str] = []
        self.gates: list[NDArray[np.float32]] = []
        self.active: list[tuple[tuple[int, int], ...]] = []

    def grow(self, until: int) -> None:
        wanted = range(len(self.kinds), min(until, len(self.source)))
        for group, images in batches(self.source, wanted, self.batch):
            gate = np.zeros((len(group), 0), np.float32)
            if self.route is not None and self.experts:
                gate = np.asarray(self.route(images)[1], np.float32)
                if not np.isfinite(gate).all():
                    raise CalibrationError(
                        f"the router gives a gate that is not finite for calibration crop {group[0].key} or one of the "
                        f"{len(group) - 1} after it; the model's weights are broken, or the crop is"
                    )
            self.kinds += [sample.degradation for sample in group]
            self.gates += list(gate)
            self.active += active_experts(gate, self.experts)

    def draw(self, chosen: Sequence[int], minimum: int) -> Draw:
        order = tuple(sorted(chosen))
        coverage = measure_coverage(
            [self.kinds[i] for i in order],
            [self.active[i] for i in order],
            self.source.degradations,
            self.experts,
            minimum,
        )
        gates = np.stack([self.gates[i] for i in order]).astype(np.float32)
        return Draw(order, tuple(self.source.sample(i) for i in order), gates, coverage, len(self.kinds))


def _check(source: CalibrationSource, config: BalanceConfig) -> None:
    if len(source) < 1 or config.size < 1:
        raise CalibrationError(f"a calibration set of {config.size} crops out of {len(source)} cannot be drawn; need 1")


def draw_blind(
    source: CalibrationSource, route: Route | None, experts: Sequence[int], config: BalanceConfig | None = None
) -> Draw:
    """The first ``size`` crops as they come, for comparison; routed only to count."""
    config = config or BalanceConfig()
    _check(source, config)
    pool = _Pool(source, route, experts, config.batch)
    pool.grow(config.size)
    return pool.draw(range(len(pool.kinds)), config.minimum)


def draw_balanced(
    source: CalibrationSource, route: Route | None, experts: Sequence[int], config: BalanceConfig | None = None
) -> Draw:
    """Choose ``size`` crops greedily: each time the one that fills the largest unmet needs; ties to the lowest index.

    ``experts`` is the number of experts of each level (empty: no routing). The pool of candidates starts at twice
    ``size`` and doubles as long as an expert lacks crops. Deterministic. A source smaller than ``size`` is taken whole.
    """
    config = config or BalanceConfig()
    _check(source, config)
    pool = _Pool(source, route, experts, config.batch)
    looked_at = 2 * config.size
    while True:
        pool.grow(min(looked_at, config.pool))
        chosen, met = _choose(pool, config)
        if met or looked_at >= config.pool or len(pool.kinds) >= len(source):
            return pool.draw(chosen, config.minimum)
        looked_at *= 2


def _choose(pool: _Pool, config: BalanceConfig) -> tuple[list[int], bool]:
    """The greedy choice, and whether every expert's need was met."""

    def share_of(count: int) -> int:
        return max(config.minimum, round(config.share * config.size / count))

    expert_needs = {
        (level, expert): share_of(count) for level, count in enumerate(pool.experts) for expert in range(count)
    }
    needs: dict[object, int] = {**dict.fromkeys(pool.source.degradations, share_of(len(pool.source.degradations)))}
    needs.update(expert_needs)
    have: dict[object, int] = dict.fromkeys(needs, 0)
    wants: list[tuple[object, ...]] = [(kind, *pairs) for kind, pairs in zip(pool.kinds, pool.active, strict=True)]
    left = list(range(len(wants)))
    chosen: list[int] = []

    def worth(index: int) -> float:
        return sum(max(0.0, 1.0 - have[item] / needs[item]) for item in wants[index])

    def crowding(index: int) -> float:
        return sum(have[item] / needs[item] for item in wants[index])

    while left and len(chosen) < config.size:
        # Once all needs are met, worth is 0 everywhere and the least crowded degradations and experts go on filling.
        best = min(left, key=lambda index: (-worth(index), crowding(index), index))
        left.remove(best)
        chosen.append(best)
        for item in wants[best]:
            have[item] += 1
    return chosen, all(have[pair] >= need for pair, need in expert_needs.items())
