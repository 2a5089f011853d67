"""What damage leaves in a picture's simplest statistics: the router's second source besides its features [ours].

Pooled features of the first levels hardly tell JPEG from blur from nothing; the energy of differences at several
scales, and how it is spread over the eight phases of JPEG's grid, does. The idea is that of no-reference measures:
blockiness as the excess of differences across block borders (Wang, Sheikh and Bovik, ICIP 2002), blur and noise as the
fall of gradient energy from scale to scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.pooled import PooledStatistics, over_batch

__all__ = ["TRACES", "DamageTraces"]

_GRID = 8
_FLOOR = 1e-3  # a quarter of a grey level: below it differences are rounding
_SCALES = 4
# Mean and half-range of the logarithms below on damaged photos, roughly: what follows sees numbers around 0 and 1.
_CENTRE, _SPREAD = -4.0, 1.0
_EXCESS_SPREAD = 0.15

TRACES = 4 * 2 + 2 * _SCALES + 4
"""How many numbers :class:`DamageTraces` gives."""


class DamageTraces(nn.Module):
    """Bx3xHxW in 0..1 (H, W multiples of 16) to BxTRACES; 1xTRACES, their mean, where ``pooled`` takes the batch
    together.

    Of the grey picture: for first and second differences along each axis, the mean over the eight phases of the log
    energy and the largest phase's excess over it; the log energy of first differences along each axis at four scales.
    Of red and blue minus green: the log energy of first differences at two scales (JPEG keeps colour at half size).
    """

    def forward(self, image: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        grey = image.mean(dim=1, keepdim=True)
        parts = [self._phases(grey, axis, order) for axis in (2, 3) for order in (1, 2)]
        scaled = grey
        for scale in range(_SCALES):
            if scale:
                scaled = F.avg_pool2d(scaled, 2)
            parts.append(torch.cat([self._level(_difference(scaled, axis).mean(dim=(2, 3))) for axis in (2, 3)], dim=1))
        colour = image[:, ::2] - image[:, 1:2]  # B x 2 x H x W
        for shrunk in (colour, F.avg_pool2d(colour, 2)):
            down, right = (_difference(shrunk, axis).mean(dim=(2, 3)) for axis in (2, 3))
            parts += [self._level(down + right)]
        return over_batch(pooled, torch.cat(parts, dim=1))

    @staticmethod
    def _level(energy: Tensor) -> Tensor:
        return (torch.log(energy + _FLOOR) - _CENTRE) / _SPREAD

    def _phases(self, grey: Tensor, axis: int, order: int) -> Tensor:
        """Bx1xHxW to Bx2."""
        energy = grey
        for _ in range(order):
            energy = _signed(energy, axis)
        profile = energy.abs().mean(dim=5 - axis).flatten(1)  # B x (N - order)
        # Whole periods only: N is a multiple of the grid, so that the last N - 8 differences are.
        profile = profile[:, _GRID - order :]
        phases = profile.reshape(profile.shape[0], -1, _GRID).mean(dim=1)
        logs = torch.log(phases + _FLOOR)
        mean = logs.mean(dim=1, keepdim=True)
        excess = logs.amax(dim=1, keepdim=True) - mean
        return torch.cat(((mean - _CENTRE) / _SPREAD, excess / _EXCESS_SPREAD), dim=1)


def _signed(x: Tensor, axis: int) -> Tensor:
    return x[:, :, 1:] - x[:, :, :-1] if axis == 2 else x[..., 1:] - x[..., :-1]


def _difference(x: Tensor, axis: int) -> Tensor:
    return _signed(x, axis).abs()
