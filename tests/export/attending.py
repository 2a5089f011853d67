"""Habits of published restorers' attention, a few lines each: functions from a map BxCxHxW to one like it.

Each stands for a kind, as those of :mod:`habits`, and they are run in the same way.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Weights that are always the same, all different."""
    return torch.sin(torch.arange(float(math.prod(shape))) * 2.3 + seed).view(shape) * 0.6


def multiple(n: int, of: int) -> int:
    """What an axis lacks to a whole number of windows."""
    return (of - n % of) % of


# -- windows and grids -------------------------------------------------------------------------------------------------


def sparse_grid(f: Tensor) -> Tensor:
    """Every fourth pixel attends to its like; what is padded is masked, and the bias follows from relative places that
    are computed in place, for as many pixels as the picture has."""
    interval = 4
    x = F.avg_pool2d(f, 2).permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    right, down = multiple(w, interval), multiple(h, interval)
    x = F.pad(x, (0, 0, 0, right, 0, down))
    _, high, wide, _ = x.shape
    outside = torch.zeros((1, high, wide, 1), device=x.device)
    if down > 0:
        outside[:, -down:, :, :] = -1
    if right > 0:
        outside[:, :, -right:, :] = -1
    gh, gw = high // interval, wide // interval
    x = x.reshape(b, gh, interval, gw, interval, c).permute(0, 2, 4, 1, 3, 5).contiguous()
    x = x.reshape(b * interval * interval, gh * gw, c)
    mask = None
    if right > 0 or down > 0:
        outside = outside.reshape(1, gh, interval, gw, interval, 1).permute(0, 2, 4, 1, 3, 5).contiguous()
        outside = outside.reshape(interval**2, 1, gh * gw)
        mask = torch.zeros((interval**2, gh * gw, gh * gw), device=x.device).masked_fill(outside < 0, -1e9)
    rows, columns = torch.arange(1 - gh, gh, device=x.device), torch.arange(1 - gw, gw, device=x.device)
    places = torch.stack(torch.meshgrid([rows, columns], indexing="ij")).flatten(1).transpose(0, 1).contiguous().float()
    bias = torch.sin(places @ numbers(2, 1))
    at = torch.stack(torch.meshgrid([torch.arange(gh), torch.arange(gw)], indexing="ij")).flatten(1)
    apart = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0).contiguous()
    apart[:, :, 0] += gh - 1
    apart[:, :, 1] += gw - 1
    apart[:, :, 0] *= 2 * gw - 1
    bias = bias[apart.sum(-1).view(-1)].view(gh * gw, gh * gw, -1).permute(2, 0, 1).contiguous()
    share = x @ (x * 0.5).transpose(-2, -1) + bias
    if mask is not None:
        share = share.view(b, interval**2, gh * gw, gh * gw) + mask.unsqueeze(0)
        share = share.view(-1, gh * gw, gh * gw)
    x = share.softmax(-1) @ x
    x = x.reshape(b, interval, interval, gh, gw, c).permute(0, 3, 1, 4, 2, 5).contiguous().reshape(b, high, wide, c)
    if right > 0 or down > 0:
        x = x[:, :h, :w, :].contiguous()
    return F.interpolate(x.permute(0, 3, 1, 2), f.shape[-2:], mode="bilinear")


def rectangles(f: Tensor) -> Tensor:
    """Windows of 4x8 for some channels and of 8x4 for others, rolled by half of each, with a mask of its own each."""
    b, _, h, w = f.shape
    right, down = multiple(w, 8), multiple(h, 8)
    x = F.pad(f, (0, right, 0, down))
    high, wide = h + down, w + right
    made = []
    for part, (sh, sw) in ((x[:, :1], (4, 8)), (x[:, 1:], (8, 4))):
        y = torch.roll(part, shifts=(-sh // 2, -sw // 2), dims=(2, 3))
        image = torch.zeros((1, high, wide, 1))
        number = 0
        for rows in (slice(0, -sh), slice(-sh, -(sh // 2)), slice(-(sh // 2), None)):
            for columns in (slice(0, -sw), slice(-sw, -(sw // 2)), slice(-(sw // 2), None)):
                image[:, rows, columns, :] = number
                number += 1
        kinds = image.view(1, high // sh, sh, wide // sw, sw, 1).permute(0, 1, 3, 2, 4, 5).contiguous()
        kinds = kinds.view(-1, sh * sw)
        mask = kinds.unsqueeze(1) - kinds.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, (-100.0)).masked_fill(mask == 0, 0.0)
        some = y.shape[1]
        y = y.reshape(b, some, high // sh, sh, wide // sw, sw).permute(0, 2, 4, 3, 5, 1).contiguous()
        y = y.reshape(-1, sh * sw, some)
        share = y @ y.transpose(-2, -1)
        share = share.view(b, mask.shape[0], sh * sw, sh * sw) + mask.unsqueeze(0)
        y = share.view(-1, sh * sw, sh * sw).softmax(-1) @ y
        back = int(y.shape[0] / (high * wide / sh / sw))
        y = y.view(back, high // sh, wide // sw, sh, sw, -1).permute(0, 1, 3, 2, 4, 5).contiguous()
        y = torch.roll(y.view(back, high, wide, -1), shifts=(sh // 2, sw // 2), dims=(1, 2))
        made.append(y[:, :h, :w, :].permute(0, 3, 1, 2))
    return torch.cat(made, 1)


def overlapping(f: Tensor) -> Tensor:
    """Queries of windows of 4, keys and values of windows of 6 around them, cut out by unfold."""
    b, c, h, w = f.shape
    x = F.pad(f, (0, multiple(w, 4), 0, multiple(h, 4)), mode="reflect")
    high, wide = x.shape[2:]
    q = x.view(b, c, high // 4, 4, wide // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    kv = F.unfold(torch.cat([x, x * 0.5], 1), kernel_size=(6, 6), stride=4, padding=1)
    kv = kv.view(b, 2, c, 36, -1).permute(1, 0, 4, 3, 2).contiguous()
    k, v = (part.reshape(-1, 36, c) for part in (kv[0], kv[1]))
    y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    y = y.view(b, high // 4, wide // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, high, wide)
    return y[:, :, :h, :w]


def anchored(f: Tensor) -> Tensor:
    """Stripes as long as the picture, attended by way of a pooled map, with log-spaced places of both."""
    b, c, h, w = f.shape
    x = F.pad(f, (0, multiple(w, 8), 0, multiple(h, 8)), mode="reflect")
    high, wide = x.shape[2:]
    few = F.avg_pool2d(x, 2)
    stripes = x.view(b, c, high // 8, 8, wide).permute(0, 2, 3, 4, 1).reshape(-1, 8 * wide, c)
    anchors = few.view(b, c, high // 8, 4, wide // 2).permute(0, 2, 3, 4, 1).reshape(-1, 2 * wide, c)
    place, there = torch.linspace(-1, 1, wide), torch.linspace(-1, 1, wide // 2)
    apart = torch.sign(place[:, None] - there[None]) * torch.log2(1 + 8 * (place[:, None] - there[None]).abs())
    bias = 0.1 * apart.repeat(8, 4)
    across = (F.normalize(stripes, dim=-1) @ F.normalize(anchors, dim=-1).transpose(-2, -1) + bias).softmax(-1)
    back = (F.normalize(anchors, dim=-1) @ F.normalize(stripes, dim=-1).transpose(-2, -1) + bias.T).softmax(-1)
    y = across @ (back @ stripes)
    y = y.view(b, high // 8, 8, wide, c).permute(0, 4, 1, 2, 3).reshape(b, c, high, wide)
    return y[:, :, :h, :w]


# -- order and choice --------------------------------------------------------------------------------------------------


def strongest_channels(f: Tensor) -> Tensor:
    """Attention between channels that keeps the best of each row, several times over, by marks scattered into zeros."""
    b, _, h, w = f.shape
    ramp = torch.linspace(0, 1, w, device=f.device)  # without it all are alike in a map of one colour, up to rounding
    x = torch.stack([f, f * ramp, f * ramp * ramp], 2).view(b, 3, 3, h * w)
    q, k = F.normalize(x, dim=-1), F.normalize(x.flip(2), dim=-1)
    share = q @ k.transpose(-2, -1)
    total = 0
    for keep, weight in ((1, 0.5), (2, 0.3)):
        marks = torch.zeros(b, 3, 3, 3, device=f.device, requires_grad=False)
        index = torch.topk(share, k=keep, dim=-1, largest=True)[1]
        marks.scatter_(-1, index, 1.0)
        kept = torch.where(marks > 0, share, torch.full_like(share, float("-inf")))
        total = total + weight * (kept.softmax(-1) @ x)
    return total.reshape(b, 9, h, w)[:, ::3]


def by_brightness(f: Tensor) -> Tensor:
    """Half of the channels sorted along rows and columns and written back; tokens attend in the order of their values,
    and go back by scatter."""
    x = F.pad(F.avg_pool2d(f, 4), (0, 0, 0, 0, 0, 1))  # of four channels
    b, c, h, w = x.shape
    kept, rows = x[:, : c // 2].sort(-2)
    kept, columns = kept.sort(-1)
    x[:, : c // 2] = kept
    v, order = x.view(b, c, -1).sort(dim=-1)
    q = torch.gather((x * 0.7).view(b, c, -1), dim=2, index=order)
    lack = multiple(v.shape[-1], 2)
    q, v = F.pad(q, (0, lack)), F.pad(v, (0, lack))
    q, v = (t.view(b, 2, 2, 2, -1).permute(0, 1, 2, 3, 4).reshape(b, 2, 4, -1) for t in (q, v))
    share = F.normalize(q, dim=-1) @ F.normalize(v, dim=-1).transpose(-2, -1)
    share = share.exp() / (share.exp().sum(-1, keepdim=True) + 1)
    y = (share @ v).reshape(b, c, -1)[:, :, : h * w]
    y = torch.scatter(y, 2, order, y).view(b, c, h, w)
    first = y[:, : c // 2]
    first = torch.scatter(first, -1, columns, first)
    first = torch.scatter(first, -2, rows, first)
    y[:, : c // 2] = first
    return F.interpolate(y[:, :3], f.shape[-2:], mode="bilinear")


def by_category(f: Tensor) -> Tensor:
    """Tokens sorted by category attend in groups; the last group is filled up from the end; the way back is an index
    written row by row."""
    x = F.avg_pool2d(f, 4)
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    n = tokens.shape[1]
    kind = torch.argmax((tokens @ numbers(c, 6)).softmax(-1), dim=-1, keepdim=False)
    _, order = torch.sort(kind, dim=-1, stable=False)
    back = torch.zeros_like(order)
    for i in range(order.shape[0]):
        back[i, order[i, :]] = torch.arange(0, order.shape[-1]).to(order.device)
    mixed = torch.gather(tokens, 1, order.unsqueeze(-1).expand(tokens.shape))
    size = min(n, 16)
    groups = (n + size - 1) // size
    lack = groups * size - n
    mixed = torch.cat((mixed, torch.flip(mixed[:, n - lack : n, :], dims=[1])), dim=1).reshape(b, -1, size, c)
    scale = torch.clamp(torch.tensor(2.0), max=torch.log(torch.tensor(1.0 / 0.01))).exp()
    mixed = (mixed @ mixed.transpose(-2, -1) * scale).softmax(-1) @ mixed
    mixed = mixed.reshape(b, n + lack, c)[:, :n, :]
    y = torch.gather(mixed, 1, back.unsqueeze(-1).expand(mixed.shape))
    return F.interpolate(y.transpose(1, 2).reshape(b, c, h, w), f.shape[-2:])


def prompted(f: Tensor) -> Tensor:
    """Learned maps mixed by what the picture is, and resized to it; an axis is squeezed that is none of length one."""
    b, c, h, w = f.shape
    share = F.softmax(f.mean(dim=(-2, -1)) @ numbers(c, 5), dim=1)
    prompts = numbers(1, 5, c, 12, 12, seed=1)
    prompt = share.unsqueeze(-1).unsqueeze(-1).unsqueeze(-1) * prompts.repeat(b, 1, 1, 1, 1).squeeze(1)
    prompt = F.interpolate(torch.sum(prompt, dim=1), (h, w), mode="bilinear")
    return f * prompt
