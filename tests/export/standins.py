"""Stand-ins for families of published restorers: their structure in a few lines, small, with untrained weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchSpectralAttention(nn.Module):
    """Queries and keys correlated inside patches by FFT; the map is padded to whole patches where it has none."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.enter, self.mix = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.norm, self.leave = nn.GroupNorm(1, dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), p = x.shape, self.patch
        q, k, v = self.mix(self.enter(x)).chunk(3, dim=1)
        down, right = (p - h % p) % p, (p - w % p) % p
        if down > 0 or right > 0:
            q, k = F.pad(q, (0, right, 0, down)), F.pad(k, (0, right, 0, down))
        rows, columns = q.shape[2] // p, q.shape[3] // p
        q, k = (t.reshape(b, c, rows, p, columns, p).permute(0, 1, 2, 4, 3, 5).float() for t in (q, k))
        out = torch.fft.irfft2(torch.fft.rfft2(q) * torch.fft.rfft2(k), s=(p, p))
        out = out.permute(0, 1, 2, 4, 3, 5).reshape(b, c, rows * p, columns * p)[:, :, :h, :w]
        return self.leave(v * self.norm(out))


class ChannelAttention(nn.Module):
    """Attention between channels, queries and keys of length one."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.enter, self.leave = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in self.enter(x).chunk(3, dim=1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        share = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.leave((share @ v).reshape(b, c, h, w))


class RoutedSpectral(nn.Module):
    """Four spectral experts of growing patches; one runs for each picture, chosen from its mean."""

    def __init__(self, dim: int, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(PatchSpectralAttention(dim, 2 ** (i + 2)) for i in range(experts))
        self.router = nn.Linear(dim, experts)

    def scores(self, x: Tensor) -> Tensor:
        return self.router(x.mean((2, 3))).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero(scores.argmax(1) == number).flatten()
            if len(rows):
                out[rows] = scores[rows, number, None, None, None] * expert(x[rows])
        return x + out


class RoutedRestorer(nn.Module):
    """A U-shaped network with a routed spectral block at every stage of the decoder, and attention between channels."""

    def __init__(self, dim: int = 8, blocks: int = 5) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 3, 3, padding=1)
        self.attend = nn.ModuleList(ChannelAttention(dim) for _ in range(blocks))
        self.routed = nn.ModuleList(RoutedSpectral(dim) for _ in range(blocks))
        self.down, self.up = nn.Conv2d(dim, dim, 2, 2), nn.Conv2d(dim, 4 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        g = self.down(f)
        for number, (attend, routed) in enumerate(zip(self.attend, self.routed, strict=True)):
            if number == len(self.attend) // 2:
                g = F.pixel_shuffle(self.up(g), 2) + f
            g = g + attend(g)
            g = routed(g)
        return x + self.tail(g)
