"""Numbers pooled over a whole picture that the network computes on its way, and how tiles come to share them [ours].

Channel attention, frequency cut-offs, modulations and band weights are each computed from means over all pixels. On a
tile they are that tile's, and neighbours differ: a seam. Restoring a picture in tiles therefore takes two runs: one
records them on a few tiles, taken together as if they were one picture, and the other is given them instead of
computing its own. Averaging what each tile finds alone is not enough: on a slope from dark to bright the mean of the
tiles' attention was far from the attention of the picture (16.9 dB from the same picture in one piece; together: 80).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["PooledStatistics", "over_batch", "over_pixels", "pooled_value"]


class PooledStatistics:
    """Records the pooled statistics of one forward pass, or, made with ``given`` BxS, replays them in the same order.

    ``together``: the batch is taken for parts of one picture; everything pooled is pooled over all of them, and the
    batch axis of routing and statistics is 1. An object serves one pass.
    """

    def __init__(self, given: Tensor | None = None, *, together: bool = False) -> None:
        self._given = given
        self._at = 0
        self._found: list[Tensor] = []
        self.together = together

    @property
    def replays(self) -> bool:
        return self._given is not None

    def share(self, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The next statistic, Bx``shape``: what ``compute`` says, kept; or what was given, and nothing is computed."""
        if self._given is not None:
            return self.take(shape)
        value = compute()
        self._found.append(value.flatten(1))
        return value

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """The next of the given statistics, Bx``shape``. Only where this replays."""
        assert self._given is not None
        start, self._at = self._at, self._at + torch.Size(shape).numel()
        return self._given[:, start : self._at].reshape(-1, *shape)

    def recorded(self) -> Tensor:
        """Everything recorded, BxS in forward order. Only after a pass that records."""
        return torch.cat(self._found, dim=1)


def pooled_value(pooled: PooledStatistics | None, shape: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """:meth:`PooledStatistics.share`, or just ``compute`` where nobody records or replays."""
    return compute() if pooled is None else pooled.share(shape, compute)


def over_pixels(pooled: PooledStatistics | None, x: Tensor, *, largest: bool = False) -> Tensor:
    """The mean (or the largest) of BxCxHxW over each picture's pixels, BxC; 1xC where the batch is one picture."""
    # One reduction: onnxsim 0.8.1 joins a second one over the batch wrongly (the axes that were dropped come back).
    together = pooled is not None and pooled.together
    axes = (0, 2, 3) if together else (2, 3)
    found = x.amax(dim=axes) if largest else x.mean(dim=axes)
    return found[None] if together else found


def over_batch(pooled: PooledStatistics | None, value: Tensor) -> Tensor:
    """A sum over each picture's pixels, Bx..., averaged over the batch, 1x..., where that is one picture."""
    # Not a mean: onnxsim 0.8.1 joins that with the mean over pixels before it, and gets the axes wrong.
    return value.sum(dim=0, keepdim=True) / value.shape[0] if pooled is not None and pooled.together else value
