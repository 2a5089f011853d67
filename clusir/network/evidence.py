"""What a picture itself says of its degradations [ours]: how likely each family is in it, from its own statistics.

The head reads no feature of the network and gives it none: it is fitted when the rest is trained, on known
degradations, and decides one thing, whether haze and darkness are sure enough to be mended unasked.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.cues import BLUR, FAULTS
from clusir.network.pooled import PooledStatistics, over_batch
from clusir.network.traces import BANDS, TRACES
from clusir.spec import BLUR_BESIDE_FAULTS

__all__ = ["FAMILY_COUNT", "TONES", "EvidenceHead", "TonalStatistics"]

FAMILY_COUNT = 6
"""The families of ``clusir.degrade.kinds.FAMILY_NAMES``, in that order."""

_BLOCK_PX = 8
_THRESHOLDS = (0.04, 0.1, 0.18, 0.28, 0.4, 0.55, 0.7, 0.85)
_SOFTNESS = 0.03
# Three by three, every second: after two steps the extremes of windows of 56 px, after three of 120. A scene that is
# dark by nature has its lights, one exposed too shortly has none; a clear one has something black in every part, a
# hazy one has not. On 6,000 held-out crops, one of a thousand without them taken for them, 93 % of what is dark at
# middle severity and above is found with these and 70 % without, 95 and 90 % of what is hazy (means of two fits).
_WIDE_STEPS = (2, 3)

TONES = 4 * len(_THRESHOLDS) + 4 + 2 * len(_THRESHOLDS) * len(_WIDE_STEPS)
"""How many numbers :class:`TonalStatistics` gives."""


class TonalStatistics(nn.Module):
    """Bx3xHxW in 0..1 (H, W at least 8) to BxTONES; 1xTONES where ``pooled`` takes the batch together.

    Over blocks of 8x8 pixels: the share whose mean brightness, darkest value of any colour (the dark channel of He, Sun
    and Tang, CVPR 2009), brightest value and colourfulness lie above each of eight thresholds, softly; then the
    brightness's mean square, and the mean of each colour. Of the darkest and brightest values also over wider windows.
    """

    thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.tensor(_THRESHOLDS).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        mean = F.avg_pool2d(image, _BLOCK_PX)
        grey = mean.mean(dim=1, keepdim=True)
        dark = -F.max_pool2d(-image.amin(dim=1, keepdim=True), _BLOCK_PX)
        bright = F.max_pool2d(image.amax(dim=1, keepdim=True), _BLOCK_PX)
        colourful = mean.amax(dim=1, keepdim=True) - mean.amin(dim=1, keepdim=True)
        shares = [self._above(x) for x in (grey, dark, bright, colourful)]
        parts = [torch.cat((*shares, grey.square(), mean), dim=1)]
        for step in range(1, max(_WIDE_STEPS) + 1):
            dark = -F.max_pool2d(-dark, 3, stride=2, padding=1)
            bright = F.max_pool2d(bright, 3, stride=2, padding=1)
            if step in _WIDE_STEPS:
                parts.append(torch.cat((self._above(dark), self._above(bright)), dim=1))
        return over_batch(pooled, torch.cat([maps.mean(dim=(2, 3)) for maps in parts], dim=1))

    def _above(self, x: Tensor) -> Tensor:
        return torch.sigmoid((x - self.thresholds) / _SOFTNESS)


class EvidenceHead(nn.Module):
    """The probability of each family, Bx6 in 0..1, from Bx(TRACES+BANDS) statistics and the picture's tones.

    ``thresholds``, 6: the evidence from which on a family is mended unasked. ``floors``, 6: the evidence from which on
    it is mended where everything may be; under it a picture has no trace of the family, and a network that is told so
    does better than one that has to doubt. Both are 0 until they are calibrated.
    """

    thresholds: Tensor
    floors: Tensor

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.tones = TonalStatistics()
        self.read = nn.Sequential(
            nn.Linear(TRACES + BANDS + TONES, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.say = nn.Linear(hidden, FAMILY_COUNT)
        self.register_buffer("thresholds", torch.zeros(FAMILY_COUNT))
        self.register_buffer("floors", torch.zeros(FAMILY_COUNT))

    def statistics(self, image: Tensor, seen: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        """What :meth:`judge` reads: ``seen`` (traces and oriented energies) and the tones of the picture."""
        return torch.cat((seen, self.tones(image, pooled)), dim=1)

    def judge(self, statistics: Tensor) -> Tensor:
        """Log odds, Bx6."""
        odds: Tensor = self.say(self.read(statistics))
        return odds

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *how: Any) -> None:
        # Weights without floors were trained to be told that everything may be mended.
        state.setdefault(f"{prefix}floors", torch.zeros(FAMILY_COUNT))
        super()._load_from_state_dict(state, prefix, *how)

    def permit(self, permissions: Tensor, evidence: Tensor) -> Tensor:
        """Permissions in 0..1 from those asked for: -p is p where the evidence reaches the threshold, -1 - p is p
        where it reaches the floor, both are 0 elsewhere; p in 0..1. Where noise or JPEG may be mended blur needs
        evidence of 0.6, too, to be mended unasked."""
        anything = permissions < -1
        sure = (evidence >= torch.where(anything, self.floors, self.thresholds)).to(evidence.dtype)
        share = torch.where(anything, -permissions - 1, -permissions)
        permitted = torch.where(permissions < 0, share * sure, permissions)
        faults = permitted[:, FAULTS].amax(dim=1, keepdim=True) > 0
        beside = BLUR_BESIDE_FAULTS * (self.thresholds[BLUR] > 0).to(evidence.dtype)  # 0 until it is calibrated
        doubted = faults & (evidence[:, BLUR] < beside) & (permissions[:, BLUR] < 0)
        blur = permitted[:, BLUR] * (1 - doubted.to(permitted.dtype))
        return torch.cat((permitted[:, : BLUR.start], blur, permitted[:, BLUR.stop :]), dim=1)
