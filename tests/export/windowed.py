"""Stand-ins for restorers with attention in windows: shifted and masked, overlapping, along a grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def partition(x: Tensor, size: int) -> Tensor:
    """BxHxWxC -> windows, (B windows) x size x size x C."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def reverse(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    """The way back, the batch counted from the number of windows as most code does it."""
    b = int(windows.shape[0] / (h * w / size / size))
    x = windows.view(b, h // size, w // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)


class WindowAttention(nn.Module):
    """Attention within a window of size x size tokens, with a bias for each pair of relative places."""

    def __init__(self, dim: int, size: int, heads: int) -> None:
        super().__init__()
        self.size, self.heads, self.scale = size, heads, (dim // heads) ** -0.5
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.2)
        place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + size - 1
        self.register_buffer("index", apart[..., 0] * (2 * size - 1) + apart[..., 1])
        self.qkv, self.leave = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        many, n, c = x.shape
        qkv = self.qkv(x).reshape(many, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        share = q @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        share = share + bias.unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            share = share.view(many // windows, windows, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            share = share.view(-1, self.heads, n, n)
        return self.leave((share.softmax(-1) @ v).transpose(1, 2).reshape(many, n, c))


class ShiftedBlock(nn.Module):
    """A Swin block: windows, every second time shifted by half a window and masked where they wrap."""

    def __init__(self, dim: int, size: int, shift: int, built_for: int = 32) -> None:
        super().__init__()
        self.size, self.shift, self.built_for = size, shift, (built_for, built_for)
        self.norm, self.norm2, self.attend = nn.LayerNorm(dim), nn.LayerNorm(dim), WindowAttention(dim, size, 2)
        self.mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.register_buffer("mask", self.make_mask(self.built_for) if shift else None)

    def make_mask(self, size: tuple[int, int]) -> Tensor:
        h, w = size
        image = torch.zeros((1, h, w, 1))
        spans = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        number = 0
        for rows in spans:
            for columns in spans:
                image[:, rows, columns, :] = number
                number += 1
        windows = partition(image, self.size).view(-1, self.size * self.size)
        apart = windows.unsqueeze(1) - windows.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        h, w = size
        b, _, c = x.shape
        y = self.norm(x).view(b, h, w, c)
        if self.shift > 0:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = partition(y, self.size).view(-1, self.size * self.size, c)
        if self.built_for == size:
            windows = self.attend(windows, self.mask)
        else:
            windows = self.attend(windows, self.make_mask(size).to(x.device) if self.shift else None)
        y = reverse(windows.view(-1, self.size, self.size, c), self.size, h, w)
        if self.shift > 0:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y.view(b, h * w, c)
        return x + self.mix(self.norm2(x))


class ShiftedWindows(nn.Module):
    """Like SwinIR: the picture is padded by reflection to whole windows, blocks on tokens, convolutions around."""

    def __init__(self, dim: int = 8, blocks: int = 12, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.enter, self.leave = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 3, 3, padding=1)
        self.blocks = nn.ModuleList(ShiftedBlock(dim, size, 0 if i % 2 == 0 else size // 2) for i in range(blocks))

    def check_size(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        down, right = (self.size - h % self.size) % self.size, (self.size - w % self.size) % self.size
        return F.pad(x, (0, right, 0, down), "reflect")

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = self.check_size(x)
        f = self.enter(x)
        size = (f.shape[2], f.shape[3])
        tokens = f.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, size)
        f = f + tokens.transpose(1, 2).view(tokens.shape[0], -1, size[0], size[1])
        return (x + self.leave(f))[:, :, :h, :w]
