"""A first answer to blur, in the Fourier domain: one sharpening filter for each picture, blended from a bank [ours].

Sharpening against blur of a known shape is one linear filter (Wiener 1949). Such a filter along one direction is wide
and different for every direction and length, which is what a few shared 3x3 layers do not learn: see docs/training.md.
Here the filters are given, and what is learnt is which to blend, from the picture's own statistics
(clusir.network.traces): fitted first, to undo blur and leave other degradation alone (clusir.training.deblur), then
trained on with the network, which sees the sharpened picture and mends its ringing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clusir.degrade.optics import disk_kernel, gaussian_kernel, line_kernel
from clusir.network.pooled import PooledStatistics, pooled_value
from clusir.network.traces import BANDS, TRACES

__all__ = ["FILTERS", "REACH_PX", "SteeredDeblur", "sharpening", "wiener_bank"]

_DIRECTIONS = 12
_LENGTHS_PX = (6.0, 9.0, 12.5)
_SIGMAS_PX = (0.8, 1.2, 1.6, 2.2, 3.0)
_RADII_PX = (1.5, 2.5, 3.5)
REACH_PX = 15  # of a filter, to each side; a picture of 16 px can still be mirrored so far
_GRID = 128
# The noise-to-signal ratio at f cycles a pixel is _RATIO * (16 f^2 + 0.02): photos fall with f^2. Filters are cut under
# the root of a Hann window: of the exact filter for 9 px, cut to 16 px sharply, -1.8 dB was left on such blur, so +2.3,
# and +2.2 with a direction 4 degrees off (ratio 0.05; 0.02: +2.9 and +2.7, 0.15: +1.5 and +1.5; 8 photos).
_RATIO = 0.03

FILTERS = _DIRECTIONS * len(_LENGTHS_PX) + len(_SIGMAS_PX) + len(_RADII_PX)
"""How many filters the bank holds: lines of blur by length and direction, Gaussians, disks."""


def sharpening(kernel: NDArray[np.float32], *, windowed: bool = True) -> NDArray[np.float64]:
    """What the filter against one blur adds to a picture: 31 x 31, symmetric, it sums to 0.

    ``kernel``: KxK, K odd and at most 128, symmetric about its centre, sums to 1. conj(B) / (|B|^2 + ratio) of its
    spectrum B (Wiener 1949), under the root of a Hann window unless ``windowed`` is off.
    """
    frequency = np.fft.fftfreq(_GRID)
    ratio = _RATIO * (16 * (frequency[:, None] ** 2 + frequency[None, :] ** 2) + 0.02)
    spread, reach, side = np.zeros((_GRID, _GRID)), kernel.shape[0] // 2, 2 * REACH_PX + 1
    spread[: kernel.shape[0], : kernel.shape[1]] = kernel
    blur = np.fft.fft2(np.roll(spread, (-reach, -reach), axis=(0, 1))).real
    answer = np.roll(np.fft.ifft2(blur / (blur**2 + ratio)).real, (REACH_PX, REACH_PX), axis=(0, 1))[:side, :side]
    if windowed:
        window = np.sqrt(np.hanning(side + 2)[1:-1])
        answer = answer * np.outer(window, window)
    answer = answer / answer.sum()
    answer[REACH_PX, REACH_PX] -= 1.0
    return np.asarray((answer + answer[::-1, ::-1]) / 2)


def wiener_bank() -> Tensor:
    """FILTERS x 31 x 31: :func:`sharpening` against lines of blur, Gaussians and disks."""
    return torch.from_numpy(_bank().copy())


@cache
def _bank() -> NDArray[np.float32]:
    """The bank is half of what it takes to make the smallest network, and the same for each."""
    lines = [line_kernel(length, 180.0 * k / _DIRECTIONS) for length in _LENGTHS_PX for k in range(_DIRECTIONS)]
    kernels = [*lines, *(gaussian_kernel(s) for s in _SIGMAS_PX), *(disk_kernel(r) for r in _RADII_PX)]
    return np.stack([sharpening(kernel) for kernel in kernels]).astype(np.float32)


class SteeredDeblur(nn.Module):
    """What to add to the grey picture: Bx3xHxW in 0..1 (H, W more than REACH_PX) to Bx1xHxW.

    The weights of the blend may have either sign and start at 0. Under a softmax, whose gradient is as small as the
    weight itself, the directions of motion were not found at all. They are a pooled statistic, so tiles share them.
    Borders are mirrored.
    """

    bank: Tensor

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("bank", wiener_bank(), persistent=False)
        self.read = nn.Sequential(nn.Linear(TRACES + BANDS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.choose = nn.Linear(hidden, FILTERS)
        self.reset()

    def reset(self) -> None:
        """Back to random weights that add nothing."""
        for layer in self.read:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        nn.init.zeros_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)

    def blend(self, statistics: Tensor) -> Tensor:
        """BxTRACES+BANDS to the weights of the filters, BxFILTERS."""
        weights: Tensor = self.choose(self.read(statistics))
        return weights

    def forward(
        self,
        image: Tensor,
        statistics: Callable[[], Tensor],
        pooled: PooledStatistics | None = None,
        permission: Tensor | None = None,
    ) -> Tensor:
        """``statistics`` gives traces and oriented energies, BxTRACES+BANDS; not asked where the blend is given.
        ``permission`` Bx1 in 0..1, of blur, weighs the whole blend."""

        def choose() -> Tensor:
            blend = self.blend(statistics())
            return blend if permission is None else blend * permission

        blend = pooled_value(pooled, (FILTERS,), choose)
        side = 2 * REACH_PX + 1
        kernel = (blend @ self.bank.reshape(FILTERS, -1)).reshape(-1, 1, side, side)
        grey = F.pad(image.mean(dim=1, keepdim=True), (REACH_PX,) * 4, mode="reflect")
        height, width = grey.shape[-2:]
        spectrum = torch.fft.rfft2(grey) * _response(kernel, height, width)
        added: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
        return added[..., REACH_PX : height - REACH_PX, REACH_PX : width - REACH_PX]


def _response(kernel: Tensor, height: int, width: int) -> Tensor:
    """The real answer of symmetric kernels Bx1xSxS at the bins of rfft2: Bx1 x height x (width//2+1)."""
    place = torch.arange(kernel.shape[-1], device=kernel.device, dtype=kernel.dtype) - REACH_PX
    rows = torch.arange(height, device=kernel.device, dtype=kernel.dtype)[:, None] * (2 * math.pi / height) * place
    columns = torch.arange(width // 2 + 1, device=kernel.device, dtype=kernel.dtype)[:, None]
    columns = columns * (2 * math.pi / width) * place
    even = rows.cos() @ kernel @ columns.cos().t()
    return even - rows.sin() @ kernel @ columns.sin().t()
