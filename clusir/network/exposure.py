"""One gain and one shift of each colour for a whole picture, read from what its tones came to [ours].

How bright a scene was, or how thick the air, is in no part of a picture for certain, and most of the error of dark and
hazy pictures is that guess: on held-out photos the best gain and shift of each colour would have lifted what the
network made of dark ones from 24.2 to 30.9 dB. What is best for a known degradation is measured from a few moments
(:mod:`clusir.training.judge.exposure`), so that a small head learns to read it from thousands of pictures in seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clusir.network.evidence import TONES, TonalStatistics
from clusir.network.pooled import PooledStatistics
from clusir.network.traces import BANDS, TRACES, mean_energy

__all__ = ["CORRECTIONS", "SEEN", "ExposureHead", "correct", "moved"]

CORRECTIONS = 6
"""How many numbers there are for a picture: a gain of each colour, less one, and a shift of each."""

SEEN = TRACES + BANDS + 2 * TONES
"""How many numbers :meth:`ExposureHead.judge` reads."""

# By how much means and deviations change: of held-out pictures 95 % of the dark ones change by 0.08 and more, of the
# hazy ones by 0.06; what passes for one of them and is none hardly changes.
_LEAST_MOVED, _ALL_MOVED = 0.02, 0.06
_FLAT = 1e-4  # without it the root of a flat picture's variance is that of rounding
_LEAST_GAIN, _MOST_GAIN, _MOST_SHIFT = -0.8, 2.0, 1.0


def correct(image: Tensor, correction: Tensor) -> Tensor:
    """image * (1 + gain) + shift: Bx3xHxW and ``correction`` BxCORRECTIONS to Bx3xHxW. A correction of 0 gives back the
    same bits."""
    gain, shift = correction[..., None, None].chunk(2, dim=1)
    return image * (1 + gain) + shift


def moved(image: Tensor, base: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
    """0..1, Bx1: how far the tone map changed a picture, Bx3xHxW in 0..1 before and after it. Where it found nothing to
    do nothing is corrected: evidence is wrong at times, and it has seen every pixel."""
    before, after = (_levels(x, pooled) for x in (image, base))
    change = (after - before).abs().sum(dim=1, keepdim=True) / 3
    return ((change - _LEAST_MOVED) / (_ALL_MOVED - _LEAST_MOVED)).clamp(0, 1)


def _levels(x: Tensor, pooled: PooledStatistics | None) -> Tensor:
    """Mean and deviation of each colour, Bx6."""
    mean = mean_energy(x, pooled)
    variance = mean_energy(x.square(), pooled) - mean.square()
    return torch.cat((mean, torch.sqrt(variance.clamp_min(0) + _FLAT)), dim=1)


class ExposureHead(nn.Module):
    """The correction of a picture, BxCORRECTIONS, from what evidence reads and the tones after the tone map.

    It is nothing where neither haze nor darkness may be mended, where the tone map did nothing, and until the head is
    fitted.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.tones = TonalStatistics()
        self.read = nn.Sequential(nn.Linear(SEEN, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.say = nn.Linear(hidden, CORRECTIONS)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *how: Any) -> None:
        # Weights without such a head correct nothing.
        if not any(name.startswith(prefix) for name in state):
            state.update({f"{prefix}{name}": value for name, value in ExposureHead().state_dict().items()})
        super()._load_from_state_dict(state, prefix, *how)

    def statistics(self, known: Tensor, base: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        """What :meth:`judge` reads, BxSEEN. ``known``: the evidence's statistics of the picture; ``base``: Bx3xHxW,
        the picture after the tone map."""
        return torch.cat((known, self.tones(base.clamp(0, 1), pooled)), dim=1)

    def judge(self, statistics: Tensor) -> Tensor:
        """BxSEEN to BxCORRECTIONS: gains less one in -0.8..2, shifts in -1..1 of the 0..1 range."""
        gain, shift = self.say(self.read(statistics)).chunk(2, dim=1)
        return torch.cat((gain.clamp(_LEAST_GAIN, _MOST_GAIN), shift.clamp(-_MOST_SHIFT, _MOST_SHIFT)), dim=1)

    def forward(
        self, known: Tensor, image: Tensor, base: Tensor, tonal: Tensor, pooled: PooledStatistics | None = None
    ) -> Tensor:
        """``image``, ``base``: Bx3xHxW before and after the tone map; ``tonal``: Bx1 in 0..1, how far haze or darkness
        may be mended."""
        said = self.judge(self.statistics(known, base, pooled))
        return said * (tonal * moved(image, base.clamp(0, 1), pooled))
