"""What degradation leaves in a picture's simplest statistics: the router's second source besides its features [ours].

Pooled features of the first levels hardly tell JPEG from blur from nothing; the energy of differences at several
scales, and how it is spread over the eight phases of JPEG's grid, does. The idea is that of no-reference measures:
blockiness as the excess of differences across block borders (Wang, Sheikh and Bovik, ICIP 2002), blur and noise as the
fall of gradient energy from scale to scale.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.pooled import PooledStatistics, over_batch

__all__ = ["BANDS", "TRACES", "DegradationTraces", "OrientedEnergies", "mean_energy"]

_GRID = 8
_FLOOR = 1e-3  # a quarter of a grey level: below it differences are rounding
_SCALES = 4
# Mean and half-range of the logarithms below on degraded photos, roughly: what follows sees numbers around 0 and 1.
_CENTRE, _SPREAD = -4.0, 1.0
_EXCESS_SPREAD = 0.15

# The oriented bank: a line of blur dims the bands along it and spares those across. From these energies on crops of 96
# px a small regression tells the direction of motion blur of 4 to 16 px to within 3 degrees (median); 12 or 16
# orientations, 6 frequencies or kernels of 7 to 15 px are no better (2.7 to 3.9).
_ORIENTATIONS = 8
_FREQUENCIES = (0.08, 0.14, 0.22, 0.33)  # cycles a pixel
_BAND_SPREAD = 0.3
_BANK_PX = 11
_BANK_STRIDE = 3  # no divisor of JPEG's grid: all its phases count

TRACES = 4 * 2 + 2 * _SCALES + 4
"""How many numbers :class:`DegradationTraces` gives."""

BANDS = (1 + _ORIENTATIONS) * len(_FREQUENCIES)
"""How many numbers :class:`OrientedEnergies` gives."""


class DegradationTraces(nn.Module):
    """Bx3xHxW in 0..1 (H, W multiples of 16) to BxTRACES; 1xTRACES, of their mean energies, where ``pooled`` takes the
    batch together.

    Of the grey picture: for first and second differences along each axis, the mean over the eight phases of the log
    energy and the largest phase's excess over it; the log energy of first differences along each axis at four scales.
    Of red and blue minus green: the log energy of first differences at two scales (JPEG keeps colour at half size).
    """

    def forward(self, image: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        grey = image.mean(dim=1, keepdim=True)
        parts = [self._phases(grey, axis, order, pooled) for axis in (2, 3) for order in (1, 2)]
        scaled = grey
        for scale in range(_SCALES):
            if scale:
                scaled = F.avg_pool2d(scaled, 2)
            parts.append(self._level(torch.cat([mean_energy(_difference(scaled, a), pooled) for a in (2, 3)], dim=1)))
        colour = image[:, ::2] - image[:, 1:2]  # B x 2 x H x W
        for shrunk in (colour, F.avg_pool2d(colour, 2)):
            down, right = (mean_energy(_difference(shrunk, axis), pooled) for axis in (2, 3))
            parts += [self._level(down + right)]
        return torch.cat(parts, dim=1)

    @staticmethod
    def _level(energy: Tensor) -> Tensor:
        return (torch.log(energy + _FLOOR) - _CENTRE) / _SPREAD

    def _phases(self, grey: Tensor, axis: int, order: int, pooled: PooledStatistics | None) -> Tensor:
        """Bx1xHxW to Bx2."""
        energy = grey
        for _ in range(order):
            energy = _signed(energy, axis)
        profile = energy.abs().mean(dim=5 - axis).flatten(1)  # B x (N - order)
        # Whole periods only: N is a multiple of the grid, so that the last N - 8 differences are.
        profile = profile[:, _GRID - order :]
        periods = profile.reshape(profile.shape[0], -1, _GRID)
        phases = over_batch(pooled, periods.mean(dim=1))  # parts of a picture start on its grid (runtimes.tiling)
        logs = torch.log(phases + _FLOOR)
        mean = logs.mean(dim=1, keepdim=True)
        excess = logs.amax(dim=1, keepdim=True) - mean
        return torch.cat(((mean - _CENTRE) / _SPREAD, excess / _EXCESS_SPREAD), dim=1)


def mean_energy(x: Tensor, pooled: PooledStatistics | None) -> Tensor:
    """The mean over pixels, BxC; 1xC of a batch that is one picture: energies are averaged over its parts, not their
    logarithms, so that it is what the picture has. In steps: OpenVINO adds up in order, in float32, and a mean of
    65,000 equal numbers was 8e-5 off; two means in a row it would merge, a mean and a sum it does not."""
    return over_batch(pooled, x.mean(dim=3).sum(dim=2) / x.shape[2])


def _signed(x: Tensor, axis: int) -> Tensor:
    return x[:, :, 1:] - x[:, :, :-1] if axis == 2 else x[..., 1:] - x[..., :-1]


def _difference(x: Tensor, axis: int) -> Tensor:
    return _signed(x, axis).abs()


class OrientedEnergies(nn.Module):
    """Log energy of the grey picture in bands of 4 frequencies and 8 orientations: Bx3xHxW in 0..1 to BxBANDS, for each
    frequency the mean over its orientations, then every orientation's excess over that; 1xBANDS where ``pooled`` takes
    the batch together.

    Even Gabor filters (Gabor 1946; Daugman, JOSA A 1985) without a mean, of unit absolute sum. Orientation k passes
    waves that run along k * 22.5 degrees, counter-clockwise from the x axis. They are constants: trained along with the
    network they lost most of what they say about direction (the deblurring blend fitted on them gained 0.14 dB on
    motion blur of 4 to 12 px instead of 0.67).
    """

    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", _gabor_bank(), persistent=False)

    def forward(self, image: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        grey = image.mean(dim=1, keepdim=True)
        energy = mean_energy(F.conv2d(grey, self.bank, stride=_BANK_STRIDE).abs(), pooled)
        logs = torch.log(energy + _FLOOR).reshape(-1, len(_FREQUENCIES), _ORIENTATIONS)
        mean = logs.mean(dim=2, keepdim=True)
        bands = torch.cat(((mean - _CENTRE) / _SPREAD, (logs - mean) / _BAND_SPREAD), dim=2)
        return bands.flatten(1)


def _gabor_bank() -> Tensor:
    reach = _BANK_PX // 2
    y, x = torch.meshgrid(*(torch.arange(-reach, reach + 1, dtype=torch.float64),) * 2, indexing="ij")
    filters = []
    for frequency in _FREQUENCIES:
        spread = min(0.5 / frequency, reach / 2)  # px: about an octave wide, and inside the kernel
        window = torch.exp(-(x.square() + y.square()) / (2 * spread**2))
        for orientation in range(_ORIENTATIONS):
            angle = math.pi * orientation / _ORIENTATIONS
            wave = window * torch.cos(2 * math.pi * frequency * (x * math.cos(angle) - y * math.sin(angle)))
            wave = wave - window * (wave.sum() / window.sum())
            filters.append(wave / wave.abs().sum())
    return torch.stack(filters)[:, None].float()
