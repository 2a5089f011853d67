"""Prompts and DAFMM: what the recognised degradation does to the frequency bands of the features.

The decomposition is a soft radial low-pass in the Fourier domain whose cut-off each picture and channel group chooses
from the cluster cue; the high band is the rest, so low + high is the input. Pipeline and module names are from the
published description of ClusIR (arXiv 2512.10948), the adaptive mask is AdaIR's idea (arXiv 2403.14614) with a smooth
edge that has a gradient at every size; formulas are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.layers import ChannelAttention, WaveletTransformerBlock, scale_init
from clusir.network.pooled import PooledStatistics, over_pixels, pooled_value

__all__ = ["DegradationPrompt", "FourierSplit", "FrequencyModulation", "radial_frequency"]

_CUTOFF_MIN, _CUTOFF_MAX = 0.02, 0.6
_EDGE_SOFTNESS = 0.05


def radial_frequency(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Radial frequency of each rfft2 bin, height x (width//2+1), 0 at DC and 1 at the corner (both axes at Nyquist)."""
    rows = torch.arange(height, device=device, dtype=torch.float32) / height
    columns = torch.arange(width // 2 + 1, device=device, dtype=torch.float32) / width
    rows = torch.minimum(rows, 1.0 - rows)
    return (2.0 * (rows.square()[:, None] + columns.square()[None, :])).sqrt()


class FourierSplit(nn.Module):
    """Split BxCxHxW into (low, high), low + high = input, with a cut-off per sample and channel group.

    cutoff = 0.02 + 0.58 sigmoid(MLP[cue; GAP(X)]);  low = irfft2( sigmoid((cutoff - rho)/0.05) * rfft2(X) ).
    """

    def __init__(self, width: int, cue: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.cutoff = nn.Sequential(nn.Linear(cue + width, cue), nn.SiLU(), nn.Linear(cue, groups))

    def mask(self, x: Tensor, cue: Tensor, rho: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        """The share of each frequency ``rho`` (any plane of them) that is low: B x groups x 1 x that plane."""
        share = pooled_value(
            pooled,
            (self.groups,),
            lambda: torch.sigmoid(self.cutoff(torch.cat((cue, over_pixels(pooled, x)), dim=1))),
        )
        cutoff = _CUTOFF_MIN + (_CUTOFF_MAX - _CUTOFF_MIN) * share
        return torch.sigmoid((cutoff[:, :, None, None, None] - rho) / _EDGE_SOFTNESS)

    def forward(self, x: Tensor, cue: Tensor, pooled: PooledStatistics | None = None) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        mask = self.mask(x, cue, radial_frequency(height, width, x.device), pooled)  # B x groups x 1 x H x (W//2+1)
        grouped = x.reshape(batch, self.groups, channels // self.groups, height, width)
        low = torch.fft.irfft2(torch.fft.rfft2(grouped, norm="ortho") * mask, s=(height, width), norm="ortho")
        low = low.reshape(batch, channels, height, width)
        return low, x - low


class DegradationPrompt(nn.Module):
    """Features that say what degradation to expect: a bank of maps mixed by the cluster posterior, refined by the
    picture.

    posterior BxL and features BxCxHxW give BxCxHxW.
    """

    def __init__(
        self, width: int, clusters: int, size: int, prompt_width: int, block: WaveletTransformerBlock | None
    ) -> None:
        super().__init__()
        self.bank = nn.Parameter(0.1 * torch.randn(clusters, prompt_width, size, size))
        self.merge = nn.Conv2d(prompt_width + width, width, 1)
        self.refine = block if block is not None else nn.ReLU()
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor, posterior: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        clusters, width, size, _ = self.bank.shape
        prompt = (posterior @ self.bank.reshape(clusters, -1)).reshape(-1, width, size, size)
        prompt = F.interpolate(prompt, size=features.shape[-2:], mode="bilinear", align_corners=False)
        if pooled is not None and pooled.together:
            prompt = prompt.expand(features.shape[0], -1, -1, -1)
        merged = self.merge(torch.cat((prompt, features), dim=1))
        refined = self.refine(merged) if isinstance(self.refine, nn.ReLU) else self.refine(merged, pooled)
        out: Tensor = self.leave(refined)
        return out


class CrossBand(nn.Module):
    """Let each band weigh the other: high gives low a spatial mask, low gives high a channel mask (AdaIR's FMoM), then
    each band attends to the features they came from (EvoIR)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.channel = nn.Sequential(nn.Linear(width, width // 4), nn.SiLU(), nn.Linear(width // 4, width))
        self.attend_low = ChannelAttention(width, heads, depthwise=True)
        self.attend_high = ChannelAttention(width, heads, depthwise=True)

    def forward(
        self, low: Tensor, high: Tensor, x: Tensor, pooled: PooledStatistics | None = None
    ) -> tuple[Tensor, Tensor]:
        strongest = torch.cat((high.amax(dim=1, keepdim=True), high.mean(dim=1, keepdim=True)), dim=1)
        channel = pooled_value(
            pooled,
            (low.shape[1],),
            lambda: torch.sigmoid(
                self.channel(over_pixels(pooled, low)) + self.channel(over_pixels(pooled, low, largest=True))
            ),
        )
        masked_low, masked_high = low * torch.sigmoid(self.spatial(strongest)), high * channel[:, :, None, None]
        low = masked_low + self.attend_low(masked_low, x, pooled)
        return low, masked_high + self.attend_high(masked_high, x, pooled)


class FrequencyModulation(nn.Module):
    """DAFMM: split by frequency, modulate each band by cue and prompt, weigh the bands, add back.

    x, prompt: BxCxHxW; cue: BxD. Starts as the identity (the last convolution is zero). ``cross`` adds the interaction
    between the bands, worth its cost in the larger configurations only.
    """

    def __init__(self, width: int, cue: int, groups: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.split = FourierSplit(width, cue, groups)
        last = nn.Linear(cue, 4 * width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.film = nn.Sequential(nn.Linear(cue + width, cue), nn.SiLU(), last)
        self.low_gate = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.high_row = nn.Conv2d(width, width, (1, 3), padding=(0, 1), groups=width, bias=False)
        self.high_column = nn.Conv2d(width, width, (3, 1), padding=(1, 0), groups=width)
        self.cross = CrossBand(width, heads) if cross else None
        self.leave = scale_init(nn.Conv2d(width, width, 1, bias=False), 0.0)

    def forward(self, x: Tensor, prompt: Tensor, cue: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        low, high = self.split(x, cue, pooled)
        width = x.shape[1]
        film = pooled_value(
            pooled,
            (4 * width,),
            lambda: self.film(torch.cat((cue, over_pixels(pooled, prompt)), dim=1)),
        )
        low_scale, low_shift, high_scale, high_shift = film[:, :, None, None].chunk(4, dim=1)
        low = low * torch.sigmoid(self.low_gate(low)) * (1 + low_scale) + low_shift
        high = high * torch.sigmoid(self.high_column(self.high_row(high))) * (1 + torch.tanh(prompt))
        high = high * (1 + high_scale) + high_shift
        if self.cross is not None:
            low, high = self.cross(low, high, x, pooled)
        # The softmax over a pair of band energies, per channel, is a sigmoid of their difference.
        weight = pooled_value(
            pooled,
            (width,),
            lambda: torch.sigmoid(over_pixels(pooled, high) - over_pixels(pooled, low)),
        )[:, :, None, None]
        out: Tensor = x + self.leave(weight * high + (1 - weight) * low)
        return out
