"""Stand-ins for the field's patterns, written for the benchmark page: a whole-map FFT block, patch FFT attention, a
top-k mixture of experts, and channel attention between channel norms. Each maps Bx3xHxW to the same shape; none is
anybody's published network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.experts.registry import register_moe, top_k_gate

__all__ = ["ChannelNormStandIn", "MoEStandIn", "PatchFFTStandIn", "WholeMapFFTStandIn", "describe_stand_ins"]

_WIDTH = 32


class _Restorer(nn.Module):
    """Two convolutions around ``depth`` blocks, on half the resolution, with a global residual."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(_WIDTH, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y)
        return x + F.pixel_shuffle(self.head(y), 2)


class _SpectralBlock(nn.Module):
    """rfft2, a 1x1 convolution over real and imaginary parts, irfft2: the global branch of a Fourier convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * _WIDTH, 2 * _WIDTH, 1)
        self.local = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        mixed = F.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], 1)))
        real, imaginary = mixed.chunk(2, 1)
        back: Tensor = torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")
        return back + F.relu(self.local(x))


class _PatchAttention(nn.Module):
    """Query and key correlated in 8x8 patches by FFT, the result gating the values (FFTformer's pattern)."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch
        self.enter = nn.Conv2d(_WIDTH, 3 * _WIDTH, 1)
        self.near = nn.Conv2d(3 * _WIDTH, 3 * _WIDTH, 3, padding=1, groups=3 * _WIDTH)
        self.leave = nn.Conv2d(_WIDTH, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        p, (b, c, h, w) = self.patch, x.shape
        q, k, v = self.near(self.enter(x)).chunk(3, 1)
        q, k = (t.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 2, 4, 3, 5) for t in (q, k))
        out = torch.fft.irfft2(torch.fft.rfft2(q) * torch.fft.rfft2(k), s=(p, p))
        out = out.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)
        result: Tensor = self.leave(out / p**2 * v)
        return result


class SparseExpertsStandIn(nn.Module):
    """Four convolutional experts, the best two for each picture, dispatched by index as language models do."""

    def __init__(self, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.router = nn.Linear(_WIDTH, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1))
            for _ in range(experts)
        )

    def scores(self, x: Tensor) -> Tensor:
        return torch.softmax(self.router(x.mean((2, 3))), 1)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.scores(x).topk(self.k, 1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == index)
            if rows.numel() > 0:
                out = out.index_add(0, rows, expert(x[rows]) * weight[rows, slot][:, None, None, None])
        return out


class _ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each pixel, written out as restorers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, _WIDTH, 1, 1)), nn.Parameter(torch.zeros(1, _WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class _ChannelBlock(nn.Module):
    """Attention between channels, then a feed-forward part gated by GELU, each behind a channel norm."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = _ChannelNorm(), _ChannelNorm()
        self.enter, self.leave = nn.Conv2d(_WIDTH, 3 * _WIDTH, 1, bias=False), nn.Conv2d(_WIDTH, _WIDTH, 1, bias=False)
        self.wide, self.narrow = nn.Conv2d(_WIDTH, 4 * _WIDTH, 1), nn.Conv2d(2 * _WIDTH, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.enter(self.first(x)).chunk(3, 1)
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in parts)
        weights = torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1), -1)
        y = x + self.leave((weights @ v).reshape(b, c, h, w))
        gate, value = self.wide(self.second(y)).chunk(2, 1)
        result: Tensor = y - x + self.narrow(F.gelu(gate) * value)
        return result


class WholeMapFFTStandIn(_Restorer):
    def __init__(self) -> None:
        super().__init__([_SpectralBlock() for _ in range(3)])


class PatchFFTStandIn(_Restorer):
    def __init__(self) -> None:
        super().__init__([_PatchAttention() for _ in range(3)])


class MoEStandIn(_Restorer):
    def __init__(self) -> None:
        super().__init__([SparseExpertsStandIn() for _ in range(2)])


class ChannelNormStandIn(_Restorer):
    """Its map comes back by a 1x1 convolution and a pixel shuffle; a shortcut and a residual block stand behind."""

    def __init__(self) -> None:
        super().__init__([_ChannelBlock() for _ in range(2)])
        self.grow, self.skip = nn.Conv2d(_WIDTH, 4 * _WIDTH, 1, bias=False), nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.fine = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(_WIDTH, _WIDTH, 1))
        self.head = nn.Conv2d(_WIDTH, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y)
        y = F.pixel_shuffle(self.grow(y), 2) + self.skip(x)
        return x + self.head(y + self.fine(y))


def describe_stand_ins() -> None:
    """Tell the exporter what the routed stand-in does: the few lines that a user writes for a block of their own."""
    register_moe(
        SparseExpertsStandIn,
        experts="experts",
        gate=lambda block, x: top_k_gate(block.scores(x), block.k),
    )
