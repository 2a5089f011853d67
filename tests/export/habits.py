"""Habits of published restorers' code, a few lines each: functions from a picture (or a map) BxCxHxW to one like it.

Each one stands for a kind. They are run by :class:`Together`, several in one network, so that a test exports few files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Habit = Callable[[Tensor], Tensor]


class Together(nn.Module):
    """Three channels made by a convolution, every habit applied to them, the results mixed by another."""

    def __init__(self, *habits: Habit, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.habits = habits
        self.enter = nn.Conv2d(3, 3, 3, padding=1)
        self.leave = nn.Conv2d(3 * len(habits), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.enter(x)
        return x + self.leave(torch.cat([habit(f) for habit in self.habits], 1))


# -- sizes through Python's and NumPy's numbers ------------------------------------------------------------------------


def to(f: Tensor, high: object, wide: object) -> Tensor:
    small = F.interpolate(f, (high, wide), mode="bilinear")
    return F.interpolate(small, f.shape[-2:], mode="bilinear")


def rounded(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    return to(f, round(h * 0.5), round(w / 2.5))


def by_numpy(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    return to(f, int(np.ceil(h / 8)) * 4, int(np.round(w * 0.75)))


def by_math(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    return to(f, ceil(h / 3), math.floor(w * 0.3) + 1)


def longest(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    side = max(h, w)
    square = F.pad(f, (0, side - w, 0, side - h))
    return square[:, :, :h, :w] * min(h, w) / 100


def root(f: Tensor) -> Tensor:
    n = f.shape[-1]
    k = torch.arange(n, dtype=torch.float32)
    cosines = torch.cos(math.pi / n * k[:, None] * (k[None] + 0.5)) * math.sqrt(2.0 / n)
    return (f @ cosines.T) * torch.sigmoid(-k / n) @ cosines


def windowed(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    rows = torch.hann_window(h) + torch.bartlett_window(h, periodic=False)
    return f * (rows[:, None] + torch.hamming_window(w, periodic=False)[None] * torch.blackman_window(w)[None])


def vignette(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.arange(float(w)) / float(w), indexing="ij")
    return f * torch.exp(-(y**2) - x**2)


# -- writes into parts -------------------------------------------------------------------------------------------------


def quarters(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    out = torch.zeros_like(f)
    for rows in (slice(0, h // 2), slice(h // 2, h)):
        for columns in (slice(0, w // 2), slice(w // 2, None)):
            part = f[:, :, rows, columns]
            out[:, :, rows, columns] = part - part.mean((2, 3), keepdim=True)
    return out


def border_written(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    out = f.clone()
    out[:, :, h // 3 : -(h // 4), 1 : w // 2] = torch.tanh(f[:, :, h // 3 : -(h // 4), 1 : w // 2])
    out[:, 0, h // 2] = f[:, 1, 0]
    out[..., -1] = 0.5
    return out


def interleaved(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    out = torch.zeros(f.shape[0], f.shape[1], 2 * h, 2 * w)
    out[:, :, 0::2, 0::2] = f
    out[:, :, 1::2, 0::2] = 0.5 * f
    out[:, :, ::2, 1::2] = torch.relu(f)
    return F.avg_pool2d(out, 2)


def through_a_mask(f: Tensor) -> Tensor:
    bright = f > 0.1
    out = f.clone()
    out[bright] = torch.sqrt(f[bright]) - 2 * f[bright]
    out[f < -0.2] = -0.2
    out[f > 0.9] *= 0.5
    return out


def through_one_mask_told_twice(f: Tensor) -> Tensor:
    """The mask is worked out for the read and once more for the write; what it is made of does not change between."""
    made, top = f[:, :1].clone(), f.max(1)[0]
    plane = made[:, 0]
    plane[f[:, 2] == top] = (2 + (f[:, 0] - f[:, 1])[f[:, 2] == top]) % 3
    return f + made


def by_pixel_mask(f: Tensor) -> Tensor:
    out = f.clone()
    channel = out[:, 0]
    channel[channel > 0] = 1.0
    return out


# -- pools and sizes ---------------------------------------------------------------------------------------------------


def adaptive(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    half = F.adaptive_avg_pool2d(f, (h // 2, w // 2 + 1))
    few = F.adaptive_max_pool2d(f, (4, 3)) + F.adaptive_max_pool2d(f, (h // 3, w // 5))[:, :, :1, :1]
    return F.interpolate(half, (h, w)) * F.interpolate(few, (h, w)) + F.adaptive_avg_pool2d(f, (None, 1))


def areas(f: Tensor) -> Tensor:
    small = F.interpolate(f, scale_factor=0.25, mode="area") + F.interpolate(f, (7, 5), mode="area")[..., :1, :1]
    return F.interpolate(small, f.shape[-2:])


def antialiased(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    a = F.interpolate(f, scale_factor=0.5, mode="bicubic", antialias=True)
    b = F.interpolate(f, (h // 3, w // 2), mode="bilinear", antialias=True)
    return F.interpolate(a, (h, w)) + F.interpolate(b, (h, w))


def pooled_by_size(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    mean = F.avg_pool2d(f, (h // 4, w // 4), stride=1)
    down, right = h - mean.shape[-2], w - mean.shape[-1]
    return f - F.pad(mean, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def wrapped(f: Tensor) -> Tensor:
    around = F.pad(f, (2, 1, 0, 3), mode="circular")
    return F.avg_pool2d(around, (4, 4), 1)


def grown_back(f: Tensor) -> Tensor:
    small = F.max_pool2d(f, 2)
    kernel = torch.linspace(-1, 1, 27).view(3, 1, 3, 3)
    back = F.conv_transpose2d(small, kernel, stride=2, padding=1, output_padding=1, groups=3)
    return F.pad(back, (0, f.shape[-1] - back.shape[-1], 0, f.shape[-2] - back.shape[-2]))


class GrownTo(nn.Module):
    """A transposed convolution that is told its output's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 3, 2, 1)

    def forward(self, f: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(f)), output_size=f.shape[-2:])


def pads_if_needed(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    down, right = (8 - h % 8) % 8, (8 - w % 8) % 8
    padded = F.pad(f, (0, right, 0, down), mode="reflect") if down != 0 or right != 0 else f
    return F.pixel_shuffle(F.pixel_unshuffle(padded, 8) * 0.5, 8)[:, :, :h, :w]


# -- order, attention, kernels of a picture's own ----------------------------------------------------------------------


def median(f: Tensor) -> Tensor:
    b, c, h, w = f.shape
    around = F.unfold(F.pad(f, (1, 1, 1, 1), mode="reflect"), 3).view(b, c, 9, h, w)
    return around.median(dim=2)[0] + around.median(2, keepdim=True).values[:, :, 0] + around.kthvalue(3, dim=2)[0]


def sorted_tokens(f: Tensor) -> Tensor:
    x = F.avg_pool2d(f, 4)
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    kind = (tokens @ torch.linspace(-1, 1, 12).view(3, 4)).argmax(-1)
    order = torch.argsort(kind, dim=1, stable=True)
    there = order.unsqueeze(-1).expand(-1, -1, c)
    mixed = tokens.gather(1, there)
    mixed = 0.5 * (mixed + mixed.roll(1, 1))
    back = torch.argsort(order, dim=1).unsqueeze(-1).expand(-1, -1, c)
    y = mixed.gather(1, back).transpose(1, 2).reshape(b, c, h, w)
    strongest = torch.sort(y.flatten(2), dim=-1, descending=True)[0][..., :1, None]
    return F.interpolate(y, f.shape[-2:]) + strongest


def attention_of_three_axes(f: Tensor) -> Tensor:
    b, c, h, w = f.shape
    rows = f.permute(0, 2, 3, 1).reshape(b * h, w, c)
    y = F.scaled_dot_product_attention(rows, rows * 0.7, rows)
    return y.view(b, h, w, c).permute(0, 3, 1, 2)


def attention_of_five_axes(f: Tensor) -> Tensor:
    x = F.avg_pool2d(f, 4)
    w = x.shape[-1]
    tokens = x.permute(0, 2, 3, 1)[:, :, None]  # B, H, 1, W, C
    mask = torch.arange(w)[:, None] >= torch.arange(w)[None]
    y = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)
    y = y + F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True, scale=0.2)
    return F.interpolate(y[:, :, 0].permute(0, 3, 1, 2), f.shape[-2:])


def kernel_of_each_picture(f: Tensor) -> Tensor:
    b, c, h, w = f.shape
    share = f.mean((2, 3)).softmax(1)
    kernels = torch.linspace(-0.3, 0.3, 243).view(3, 81)
    kernel = (share @ kernels).view(b * 3, 3, 3, 3)
    y = F.conv2d(f.reshape(1, b * c, h, w), kernel, padding=1, groups=b).view(b, 3, h, w)
    deep = (share[:, :, None] * torch.linspace(-1, 1, 25)).view(b * c, 1, 5, 5)
    return y + F.conv2d(f.reshape(1, b * c, h, w), deep, padding=2, groups=b * c).view(b, c, h, w)


# -- scalars, precision, devices ---------------------------------------------------------------------------------------


def mixed_scalars(f: Tensor) -> Tensor:
    gate = torch.clamp(f.mean(1, keepdim=True) * 2, min=0, max=1.0)
    return torch.clamp(f * gate, 0.0, 1) + f.clip(min=-1, max=0.5) * True + torch.where(f > 0, f, 0)


def in_half(f: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = f @ torch.ones(f.shape[-1], 1)
    return (f.half() * 1.5 + 0.1).float() + y.to(torch.float32) / 100 + f.to(torch.bfloat16).float()


def on_the_card(f: Tensor) -> Tensor:
    up = torch.zeros(f.size()).float().cuda()
    up[:, 0::2] = f[:, 0::2]
    up[:, 1::2] = 0.5 * f[:, 1::2].to("cuda:0")
    more = torch.ones(3, 1, 1, device=torch.device("cuda")).type(torch.cuda.FloatTensor)
    return up * more.cuda(non_blocking=True)


def tiny_epsilon(f: Tensor) -> Tensor:
    top = f.abs().amax((1, 2, 3), keepdim=True)
    return f / (top + 1e-8) * 1.000001 + (f - 1e-9) / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-12)


def noise_level(f: Tensor) -> Tensor:
    """A map made for one picture beside the channels of however many."""
    level = torch.zeros(1, 1, *f.shape[-2:]).to(f) + 15 / 255
    return torch.cat([f[:, :2], level], dim=1) * level


def inverse_error(f: Tensor) -> Tensor:
    return torch.erfinv(torch.tanh(f) * 0.95)


def small_inverse(f: Tensor) -> Tensor:
    flat = f.flatten(2)
    gram = flat @ flat.transpose(1, 2) / flat.shape[-1] + 0.5 * torch.eye(3) + 0.3
    return (torch.linalg.inv(gram) @ flat).view(f.shape)


# -- nearest pixels at ratios that are not whole -----------------------------------------------------------------------


def nearest_to_a_size(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    small = F.interpolate(f, (h * 3 // 7 + 1, w // 3 + 2))
    return F.interpolate(small, (h, w)) + F.interpolate(F.interpolate(f, (13, 11), mode="nearest-exact"), (h, w))


def nearest_by_a_factor(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    a = F.interpolate(f, scale_factor=0.3)
    b = F.interpolate(f, scale_factor=(1.7, 0.6), mode="nearest-exact")
    c = F.interpolate(f, scale_factor=0.45, recompute_scale_factor=True)
    return sum(F.interpolate(part, (h, w), mode="nearest-exact") for part in (a, b, c))


def nearest_twice(f: Tensor) -> Tensor:
    thrice = F.interpolate(f, scale_factor=3)[..., ::3, ::3]
    return F.avg_pool2d(F.interpolate(f, scale_factor=2), 2) + thrice
