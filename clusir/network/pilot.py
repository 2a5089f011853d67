"""A Wiener filter over blocks, with what the network made of a picture as its pilot [ours].

What a network leaves of noise, and what it takes of detail, is in neither of two pictures alone: the one that came in,
and the one it made of it. In the discrete cosine transform of small blocks the second says where a picture has energy,
and what was taken away says how much noise there was: the second step of BM3D (Dabov et al., "Image denoising by sparse
3-D transform-domain collaborative filtering", IEEE TIP 2007), without its search for similar blocks. How strongly each
frequency is filtered is fitted (:mod:`clusir.training.judge.pilot`), and a small network over the energies of a block
and of those around it says where to filter more, and where less.

With Y and D the coefficients of the restored picture and of what was taken away, E the energy of Y around a block, s
the mean square of D over the picture, and m and n what the small network says:

    Y - Y shrink m s / (E + shrink m s) + D give E / (E + doubt n s)

Where nothing was taken away s is 0 and so is D, and the picture stays as it is to the last bit.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.cues import FAULTS
from clusir.network.evidence import FAMILY_COUNT
from clusir.network.pooled import PooledStatistics
from clusir.network.traces import mean_energy

__all__ = ["SIDE_PX", "STEP_PX", "TAKEN", "PilotFilter", "cosine_bank"]

SIDE_PX, STEP_PX = 8, 4
"""The side of a block, and how far apart blocks lie: each pixel is in four of them."""

TAKEN = 4 + FAMILY_COUNT
"""How many numbers :meth:`PilotFilter.taken` gives."""

_BANDS = 3 * SIDE_PX**2
_MARGIN_PX = SIDE_PX - STEP_PX
_GAIN = 8.0  # squares of faint noise must not vanish in float16, nor those of bright blocks overflow
_RANGE = (-1.0, 2.0)  # of an answer, for the same reason
_SPREAD = (-1.0, 1.0)  # of what was taken away
_LEAST = 1e-6  # of an energy, times the square of the gain
_UNIT = 1e-3 * _GAIN**2  # of s, for its powers: noise of 8 in 255
_SPAN = 60.0  # s counts for its powers from a sixtieth of its unit, and to sixty units: noise of 62
_FAINT = 2e-4  # of an energy whose logarithm is read: noise of half a level
_LOG_SCALE = 0.3  # logarithms of energies lie within 20 of each other
_OVER_BLOCK = 3.0  # the logarithm of how much more, or less, a coefficient is filtered, at most
_CLASSES = (0, 1, 2, 2, 3, 3, 3, 3)  # of the eight frequencies of an axis: an octave each


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


def _octaves() -> Tensor:
    """16x64x1x1: the means over the frequencies of a block that lie in the same octave down and across."""
    count = max(_CLASSES) + 1
    axis = F.one_hot(torch.tensor(_CLASSES), count).float()
    found = torch.einsum("ia,jb->abij", axis, axis).reshape(count**2, SIDE_PX**2)
    return (found / found.sum(dim=1, keepdim=True))[..., None, None]


class PilotFilter(nn.Module):
    """What to add to a restored picture, Bx3xHxW (H and W multiples of 4, and at least 16).

    ``shrink``, ``give``, ``doubt``, 3x64 each, not negative: by colour and frequency, how strongly what the network
    made is shrunk, and how much of what was taken away is given back. ``shrink_power`` and ``doubt_power``: how both
    grow with s. ``own``, in 0..1: the part of a block's own energy in E; the rest are the nine blocks around it.
    ``read``, ``look``, ``say``, ``told``: the network over blocks, of ``hidden`` channels; ``told`` of s and of what is
    mended. Until it is fitted nothing is added.
    """

    bank: Tensor
    inverse: Tensor
    colours: Tensor
    octaves: Tensor

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        bank, octaves = cosine_bank(), _octaves()
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("inverse", _inverse(bank).repeat(3, 1, 1, 1), persistent=False)
        self.register_buffer("colours", _colours(), persistent=False)
        self.register_buffer("octaves", octaves.repeat(3, 1, 1, 1), persistent=False)
        self.shrink, self.give = (nn.Parameter(torch.zeros(3, SIDE_PX**2)) for _ in range(2))
        self.doubt = nn.Parameter(torch.ones(3, SIDE_PX**2))
        self.shrink_power, self.doubt_power = (nn.Parameter(torch.zeros(3, SIDE_PX**2)) for _ in range(2))
        self.own = nn.Parameter(torch.full((3, SIDE_PX**2), 0.5))
        self.read = nn.Conv2d(2 * 3 * octaves.shape[0], hidden, 1)
        self.told = nn.Linear(3 + FAMILY_COUNT, self.read.in_channels)
        self.look = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.say = nn.Conv2d(hidden, 2 * _BANDS, 1)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(cast(Tensor, self.say.bias))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *how: Any) -> None:
        # Weights without such a filter add nothing.
        if not any(name.startswith(prefix) for name in state):
            state.update({f"{prefix}{name}": value for name, value in PilotFilter().state_dict().items()})
        super()._load_from_state_dict(state, prefix, *how)

    def taken(self, away: Tensor, permissions: Tensor, share: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        """BxTAKEN: how far the filter acts, 0..1, s of each of the three colours, and the permissions. ``away``,
        Bx3xHxW: what was taken from the picture; ``permissions``, Bx6 in 0..1; ``share``, Bx1, of what was mended that
        is kept."""
        s = mean_energy(F.conv2d(away.clamp(*_SPREAD) * _GAIN, self.colours).square(), pooled) * share.square()
        return torch.cat((permissions[:, FAULTS].amax(dim=1, keepdim=True), s, permissions), dim=1)

    def forward(self, away: Tensor, restored: Tensor, taken: Tensor) -> Tensor:
        """``away``, ``restored``, Bx3xHxW: what was taken from a picture, and what is left. ``taken``: BxTAKEN, of the
        whole of it. Borders are mirrored."""
        acts, s, permissions = taken[:, :1, None], taken[:, 1:4, None].clamp(max=_SPAN * _UNIT), taken[:, 4:]
        power = (s / _UNIT).clamp(min=1 / _SPAN)
        shrink = self._bands(acts * self.shrink * power**self.shrink_power * s)
        doubt = self._bands(self.doubt * power**self.doubt_power * s)
        kept, away = (self._blocks(x * _GAIN) for x in (restored.clamp(*_RANGE), away.clamp(*_SPREAD)))
        square, own = kept * kept, self.own.reshape(-1, 1, 1)
        energy = square * own + self._around(square) * (1 - own)
        more_shrunk, more_doubted = self._judge(energy, self._around(away * away), s, permissions)
        shrink, doubt = shrink * more_shrunk, doubt * more_doubted
        back = away * (self._bands(acts * self.give) * (energy / (energy + (doubt + _LEAST))))
        change = back - kept * (shrink / (energy + (shrink + _LEAST)))
        # A transposed convolution in its own terms: four times as fast, OpenVINO's ten times.
        out = F.pixel_shuffle(F.conv2d(change, self.inverse, groups=3), STEP_PX)
        return F.conv2d(out, self.colours.transpose(0, 1))

    def _judge(self, energy: Tensor, away: Tensor, s: Tensor, permissions: Tensor) -> tuple[Tensor, Tensor]:
        """How much more each coefficient is shrunk, and doubted, Bx192xhxw each; from energies of what is left and of
        what was taken away, Bx192xhxw each."""
        faint = torch.log(s + _FAINT)
        # What is told of the picture is added in front of the convolution: behind one OpenCV takes it for a map.
        told = self.told(torch.cat((faint[..., 0] * _LOG_SCALE, permissions), dim=1))
        ground = faint.expand(-1, -1, self.octaves.shape[0] // 3).flatten(1).repeat(1, 2) * _LOG_SCALE
        seen = torch.cat([torch.log(F.conv2d(x, self.octaves, groups=3) + _FAINT) for x in (energy, away)], dim=1)
        known = seen * _LOG_SCALE + (told - ground)[..., None, None]
        hidden = F.relu(self.look(F.relu(self.read(known))))
        more_shrunk, more_doubted = torch.exp(_OVER_BLOCK * torch.tanh(self.say(hidden))).chunk(2, dim=1)
        return more_shrunk, more_doubted

    @staticmethod
    def _around(energy: Tensor) -> Tensor:
        """The mean over the nine blocks around each."""
        return F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False)

    def _blocks(self, x: Tensor) -> Tensor:
        """Coefficients of the blocks that touch a picture: Bx3xHxW to Bx192 x H/4+1 x W/4+1."""
        x = F.pad(F.conv2d(x, self.colours), (_MARGIN_PX,) * 4, mode="reflect")
        waves = F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), self.bank, stride=STEP_PX)
        return waves.reshape(-1, _BANDS, *waves.shape[-2:])

    @staticmethod
    def _bands(x: Tensor) -> Tensor:
        """Bx3x64 to Bx192x1x1."""
        return x.reshape(x.shape[0], _BANDS, 1, 1)
