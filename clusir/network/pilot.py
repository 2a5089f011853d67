"""A Wiener filter over blocks, with what the network made of a picture as its pilot [ours].

What a network leaves of noise, and what it takes of detail, is in neither of two pictures alone: the one that came in,
and the one it made of it. In the discrete cosine transform of small blocks the second says where a picture has energy,
and what was taken away says how much noise there was: the second step of BM3D (Dabov et al., "Image denoising by sparse
3-D transform-domain collaborative filtering", IEEE TIP 2007), without its search for similar blocks. How strongly each
frequency is filtered is fitted (:mod:`clusir.training.judge.pilot`).

With Y and D the coefficients of the restored picture and of what was taken away, E the energy of Y around a block, and
s the mean square of D over the picture:

    Y - Y shrink s / (E + shrink s) + D give E / (E + doubt s)

Where nothing was taken away s is 0 and so is D, and the picture stays as it is to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.cues import FAULTS
from clusir.network.pooled import PooledStatistics
from clusir.network.traces import mean_energy

__all__ = ["SIDE_PX", "STEP_PX", "TAKEN", "PilotFilter", "cosine_bank"]

SIDE_PX, STEP_PX = 8, 4
"""The side of a block, and how far apart blocks lie: each pixel is in four of them."""

TAKEN = 4
"""How many numbers :meth:`PilotFilter.taken` gives."""

_BANDS = 3 * SIDE_PX**2
_MARGIN_PX = SIDE_PX - STEP_PX
_GAIN = 8.0  # squares of faint noise must not vanish in float16, nor those of bright blocks overflow
_RANGE = (-1.0, 2.0)  # of an answer, for the same reason
_LEAST = 1e-6  # of an energy, times the square of the gain
_UNIT = 1e-3 * _GAIN**2  # of s, for its powers: noise of 8 in 255
_SPAN = 60.0  # s counts for its powers from a sixtieth of its unit, and to sixty units: noise of 62


def cosine_bank() -> Tensor:
    """64x1x8x8, orthonormal: the type-II cosine transform of blocks of 8x8. The first is the block's mean."""
    place = (torch.arange(SIDE_PX, dtype=torch.float64)[None] + 0.5) * torch.arange(SIDE_PX)[:, None]
    waves = torch.cos(math.pi / SIDE_PX * place) * math.sqrt(2 / SIDE_PX)
    waves[0] /= math.sqrt(2)
    return torch.einsum("ai,bj->abij", waves, waves).reshape(SIDE_PX**2, 1, SIDE_PX, SIDE_PX).float()


def _colours() -> Tensor:
    """3x3x1x1, orthonormal: the mean of the colours, red less blue, and green less both."""
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    return (colours / colours.norm(dim=1, keepdim=True)).float()[..., None, None]


def _inverse(bank: Tensor) -> Tensor:
    """16x64x2x2: the mean, without the gain, of what the four blocks around a cell of 4x4 pixels say of it, the cell's
    pixels as channels."""
    around = SIDE_PX // STEP_PX
    # Of the block before a cell the cell is the second half, of the one behind it the first.
    cells = bank.reshape(-1, around, STEP_PX, around, STEP_PX).flip(1, 3)
    found = cells.permute(2, 4, 0, 1, 3).reshape(STEP_PX**2, -1, around, around)
    return found / (around**2 * _GAIN)


class PilotFilter(nn.Module):
    """What to add to a restored picture, Bx3xHxW (H and W multiples of 4, and at least 16).

    ``shrink``, ``give``, ``doubt``, 3x64 each, not negative: by colour and frequency, how strongly what the network
    made is shrunk, and how much of what was taken away is given back. ``shrink_power`` and ``doubt_power``: how both
    grow with s. ``own``, in 0..1: the part of a block's own energy in E; the rest are the nine blocks around it. Until
    it is fitted nothing is added.
    """

    bank: Tensor
    inverse: Tensor
    colours: Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = cosine_bank()
        self.register_buffer("bank", bank.repeat(3, 1, 1, 1), persistent=False)
        self.register_buffer("inverse", _inverse(bank).repeat(3, 1, 1, 1), persistent=False)
        self.register_buffer("colours", _colours(), persistent=False)
        self.shrink, self.give = (nn.Parameter(torch.zeros(3, SIDE_PX**2)) for _ in range(2))
        self.doubt = nn.Parameter(torch.ones(3, SIDE_PX**2))
        self.shrink_power, self.doubt_power = (nn.Parameter(torch.zeros(3, SIDE_PX**2)) for _ in range(2))
        self.own = nn.Parameter(torch.full((3, SIDE_PX**2), 0.5))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *how: Any) -> None:
        # Weights without such a filter add nothing.
        if not any(name.startswith(prefix) for name in state):
            state.update({f"{prefix}{name}": value for name, value in PilotFilter().state_dict().items()})
        super()._load_from_state_dict(state, prefix, *how)

    def taken(
        self,
        image: Tensor,
        restored: Tensor,
        permissions: Tensor,
        share: Tensor,
        pooled: PooledStatistics | None = None,
    ) -> Tensor:
        """BxTAKEN: how far the filter acts, 0..1, and s of each of the three colours. ``image``, ``restored``: Bx3xHxW;
        ``permissions``, Bx6 in 0..1; ``share``, Bx1, of what was mended that is kept.

        It acts where noise or JPEG may be mended and nothing else: rain, haze and darkness that were taken away are no
        noise, and a sharpened picture is not to become blurred again."""
        away = F.conv2d((image - restored.clamp(*_RANGE)) * _GAIN, self.colours)
        s = mean_energy(away.square(), pooled) * share.square()
        faults, others = permissions[:, FAULTS], permissions[:, FAULTS.stop :]
        acts = faults.amax(dim=1, keepdim=True) * (1 - others.amax(dim=1, keepdim=True))
        return torch.cat((acts, s), dim=1)

    def forward(self, image: Tensor, restored: Tensor, taken: Tensor) -> Tensor:
        """``taken``: BxTAKEN, of the whole picture. Borders are mirrored."""
        acts, s = taken[:, :1, None], taken[:, 1:, None].clamp(max=_SPAN * _UNIT)
        power = (s / _UNIT).clamp(min=1 / _SPAN)
        shrink = self._bands(acts * self.shrink * power**self.shrink_power * s)
        doubt = self._bands(self.doubt * power**self.doubt_power * s)
        kept = restored.clamp(*_RANGE)
        kept, away = (self._blocks(x * _GAIN) for x in (kept, image - kept))
        square, own = kept * kept, self.own.reshape(-1, 1, 1)
        around = F.avg_pool2d(square, 3, stride=1, padding=1, count_include_pad=False)
        energy = square * own + around * (1 - own)
        back = away * (self._bands(acts * self.give) * (energy / (energy + (doubt + _LEAST))))
        change = back - kept * (shrink / (energy + (shrink + _LEAST)))
        # A transposed convolution in its own terms: four times as fast, OpenVINO's ten times.
        out = F.pixel_shuffle(F.conv2d(change, self.inverse, groups=3), STEP_PX)
        return F.conv2d(out, self.colours.transpose(0, 1))

    def _blocks(self, x: Tensor) -> Tensor:
        """Coefficients of the blocks that touch a picture: Bx3xHxW to Bx192 x H/4+1 x W/4+1."""
        x = F.pad(F.conv2d(x, self.colours), (_MARGIN_PX,) * 4, mode="reflect")
        return F.conv2d(x, self.bank, stride=STEP_PX, groups=3)

    @staticmethod
    def _bands(x: Tensor) -> Tensor:
        """Bx3x64 to Bx192x1x1."""
        return x.reshape(x.shape[0], _BANDS, 1, 1)
