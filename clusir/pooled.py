"""Numbers pooled over a whole picture that the network computes on its way, and how tiles come to share them [ours].

Channel attention, frequency cut-offs, modulations and band weights are each computed from sums over all pixels. On a
tile they are that tile's, and neighbours differ: a seam. Restoring a picture in tiles therefore takes two runs: one
records them on a few tiles, the host averages, and the other is given the averages instead of computing its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["PooledStatistics", "pooled_value"]


class PooledStatistics:
    """Records the pooled statistics of one forward pass, or, made with ``given`` BxS, replays them in the same order.

    An object serves one pass.
    """

    def __init__(self, given: Tensor | None = None) -> None:
        self._given = given
        self._at = 0
        self._found: list[Tensor] = []

    @property
    def replays(self) -> bool:
        return self._given is not None

    def share(self, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The next statistic, Bx``shape``: what ``compute`` says, kept; or what was given, and nothing is computed."""
        if self._given is None:
            value = compute()
            self._found.append(value.flatten(1))
            return value
        start, self._at = self._at, self._at + torch.Size(shape).numel()
        return self._given[:, start : self._at].reshape(-1, *shape)

    def recorded(self) -> Tensor:
        """Everything recorded, BxS in forward order. Only after a pass that records."""
        return torch.cat(self._found, dim=1)


def pooled_value(pooled: PooledStatistics | None, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """:meth:`PooledStatistics.share`, or just ``compute`` where nobody records or replays."""
    return compute() if pooled is None else pooled.share(shape, compute)
