"""Ten restorers of other people's kinds, small, with untrained weights: what brought networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.experts.registry import register_moe, top_k_gate

__all__ = ["NETWORKS", "network"]

DIM = 16


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return made


class Shaped(nn.Module):
    """A U of two levels, ``block(dim)`` at each; 2x2 pixels become channels on the way down. The picture is added."""

    def __init__(self, block: Callable[[int], nn.Module], channels: int = 3) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(channels, DIM, 3, padding=1), nn.Conv2d(DIM, channels, 3, padding=1)
        self.first, self.deep, self.last = block(DIM), block(2 * DIM), block(DIM)
        self.down = nn.Sequential(nn.Conv2d(DIM, DIM // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
        self.up = nn.Sequential(nn.Conv2d(2 * DIM, 4 * DIM, 1, bias=False), nn.PixelShuffle(2))
        self.join = nn.Conv2d(2 * DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(self.stem(x))
        deep = self.up(self.deep(self.down(wide)))
        made: Tensor = x + self.tail(self.last(self.join(torch.cat([deep, wide], 1))))
        return made


class PatchFourier(nn.Module):
    """FFTformer's kind: queries and keys correlated in patches of 8 px, then a feed-forward part whose patches are
    multiplied by learned numbers in the Fourier domain."""

    def __init__(self, dim: int, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch
        self.before, self.between, self.norm = ChannelNorm(dim), ChannelNorm(dim), ChannelNorm(2 * dim)
        self.enter, self.leave = nn.Conv2d(dim, 6 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.near = nn.Conv2d(6 * dim, 6 * dim, 3, padding=1, groups=6 * dim)
        self.wide, self.narrow = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.deep = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(4 * dim, 1, 1, patch, patch // 2 + 1))

    def cut(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h // self.patch, self.patch, w // self.patch, self.patch).permute(0, 1, 2, 4, 3, 5)

    def whole(self, x: Tensor, like: Tensor) -> Tensor:
        return x.permute(0, 1, 2, 4, 3, 5).reshape(like.shape)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.near(self.enter(self.before(x))).chunk(3, 1)
        sides = (self.patch, self.patch)
        out = torch.fft.irfft2(torch.fft.rfft2(self.cut(q)) * torch.fft.rfft2(self.cut(k)), s=sides)
        x = x + self.leave(v * self.norm(self.whole(out, q)))
        f = self.wide(self.between(x))
        f = self.whole(torch.fft.irfft2(torch.fft.rfft2(self.cut(f)) * self.weight, s=sides), f)
        a, b = self.deep(f).chunk(2, 1)
        made: Tensor = x + self.narrow(F.gelu(a) * b)
        return made


class WholeFourier(nn.Module):
    """The Fourier transform of the whole map, mixed, beside a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * dim, 2 * dim, 1), nn.LeakyReLU(0.1), nn.Conv2d(2 * dim, 2 * dim, 1))
        self.near, self.join = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        real, imaginary = self.mix(torch.cat([spectrum.real, spectrum.imag], 1)).chunk(2, 1)
        back = torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")
        made: Tensor = x + self.join(torch.cat([back, F.relu(self.near(x))], 1))
        return made


class Experts(nn.Module):
    """Four convolutions; the two likeliest run for each picture, sent there by index."""

    def __init__(self, dim: int, count: int = 4, k: int = 2) -> None:
        super().__init__()
        self.k, self.router = k, nn.Linear(dim, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 2 * n + 1, padding=n), nn.GELU(), nn.Conv2d(dim, dim, 1))
            for n in range(count)
        )

    def scores(self, x: Tensor) -> Tensor:
        made: Tensor = self.router(x.mean((2, 3))).softmax(1)
        return made

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.scores(x).topk(self.k, 1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            if rows.numel() > 0:
                out = out.index_add(0, rows, expert(x[rows]) * share[rows, place][:, None, None, None])
        return out


register_moe(Experts, experts="experts", gate=lambda block, x: top_k_gate(block.scores(x), block.k))


class Routed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.experts = Experts(dim)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.experts(x)
        return made


class Mixture(nn.Module):
    """Every expert runs, on low-rank maps of its own; a router of each pixel weights them."""

    def __init__(self, dim: int, count: int = 3) -> None:
        super().__init__()
        self.norm, self.router = ChannelNorm(dim), nn.Conv2d(dim, count, 1)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, 4 + 2 * n, 1), nn.SiLU(), nn.Conv2d(4 + 2 * n, dim, 3, padding=1))
            for n in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        f = self.norm(x)
        share = F.softmax(self.router(f), dim=1).unsqueeze(2)
        made: Tensor = x + (share * torch.stack([expert(f) for expert in self.experts], 1)).sum(1)
        return made


class Windows(nn.Module):
    """Swin's kind: attention in windows of 8 px, with relative positions; the second turn is shifted and masked."""

    def __init__(self, dim: int, side: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.side, self.heads = side, heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.enter = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(2))
        self.leave = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.bias = nn.Parameter(0.1 * torch.randn(2, (2 * side - 1) ** 2, heads))
        self.after = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(2)
        )
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.stack([y.flatten(), x.flatten()])
        apart = place[:, :, None] - place[:, None] + side - 1
        self.register_buffer("index", apart[0] * (2 * side - 1) + apart[1])

    def cut(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        p = self.side
        return x.view(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, p * p, c)

    def whole(self, x: Tensor, b: int, h: int, w: int) -> Tensor:
        p = self.side
        return x.view(b, h // p, w // p, p, p, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)

    def mask(self, h: int, w: int, shift: int) -> Tensor:
        parts = torch.zeros(1, h, w, 1)
        edges = (slice(0, -self.side), slice(-self.side, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in edges for b in edges):
            parts[:, rows, columns] = number
        cut = self.cut(parts).squeeze(-1)
        apart = cut.unsqueeze(1) - cut.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)

    def attend(self, t: Tensor, turn: int, mask: Tensor | None) -> Tensor:
        n, length, c = t.shape
        q, k, v = self.enter[turn](t).reshape(n, length, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        score = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        score = score + self.bias[turn][self.index.view(-1)].view(length, length, -1).permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            score = score.view(-1, len(mask), self.heads, length, length) + mask.unsqueeze(1).unsqueeze(0)
            score = score.view(-1, self.heads, length, length)
        made: Tensor = self.leave[turn]((score.softmax(-1) @ v).transpose(1, 2).reshape(n, length, c))
        return made

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        t = x.permute(0, 2, 3, 1)
        for turn, shift in enumerate((0, self.side // 2)):
            f = self.norms[2 * turn](t)
            f = torch.roll(f, (-shift, -shift), (1, 2)) if shift else f
            f = self.attend(self.cut(f), turn, self.mask(h, w, shift) if shift else None)
            f = self.whole(f, b, h, w)
            t = t + (torch.roll(f, (shift, shift), (1, 2)) if shift else f)
            t = t + self.after[turn](self.norms[2 * turn + 1](t))
        return t.permute(0, 3, 1, 2)


class Overlapping(nn.Module):
    """HAT's kind: queries in windows of 8 px, keys and values in those of 12 px around them."""

    def __init__(self, dim: int, side: int = 8, around: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.side, self.around, self.heads = side, around, heads
        self.norm, self.enter, self.leave = ChannelNorm(dim), nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.bias = nn.Parameter(0.1 * torch.randn(heads, side * side, around * around))

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), p, a = x.shape, self.side, self.around
        q, k, v = self.enter(self.norm(x)).chunk(3, 1)
        q = q.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(-1, p * p, c)
        keys = F.unfold(torch.cat([k, v], 1), a, stride=p, padding=(a - p) // 2)
        keys = keys.view(b, 2, c, a * a, -1).permute(1, 0, 4, 3, 2).reshape(2, -1, a * a, c)
        q, k, v = (t.view(len(t), -1, self.heads, c // self.heads).transpose(1, 2) for t in (q, *keys))
        share = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5 + self.bias).softmax(-1)
        t = (share @ v).transpose(1, 2).reshape(b, h // p, w // p, p, p, c)
        made: Tensor = x + self.leave(t.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w))
        return made


class Dense(nn.Module):
    """ESRGAN's kind, four times as large: dense blocks, then pixels doubled twice."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 3, 3, padding=1)
        self.grow = nn.ModuleList(nn.Conv2d(dim + 8 * n, 8 if n < 3 else dim, 3, padding=1) for n in range(4))
        self.up = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        f = self.head(x)
        seen = [f]
        for number, grow in enumerate(self.grow):
            made = grow(torch.cat(seen, 1))
            seen.append(F.leaky_relu(made, 0.2) if number < 3 else made)
        f = f + 0.2 * seen[-1]
        for up in self.up:
            f = F.leaky_relu(up(F.interpolate(f, scale_factor=2, mode="nearest")), 0.2)
        return F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False) + self.tail(f)


class Grey(nn.Module):
    """DnCNN's kind: one channel, batch norms, and what is taken away."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, dim, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(dim, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x - self.body(x)
        return made


class Simple(nn.Module):
    """NAFNet's kind: gates that are products of halves, and a mean of the whole map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2))
        self.wide, self.deep = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.share = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1))
        self.leave, self.enter, self.narrow = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.beta, self.gamma = (nn.Parameter(0.5 * torch.ones(1, dim, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.deep(self.wide(self.norms[0](x))).chunk(2, 1)
        f = a * b
        x = x + self.beta * self.leave(f * self.share(f))
        a, b = self.enter(self.norms[1](x)).chunk(2, 1)
        made: Tensor = x + self.gamma * self.narrow(a * b)
        return made


class Transposed(nn.Module):
    """Restormer's kind: attention between channels, then halves of which one gates the other."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2))
        self.enter, self.leave = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.near = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.wide, self.deep = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)
        self.narrow = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.near(self.enter(self.norms[0](x))).chunk(3, 1)
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in parts)
        share = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale).softmax(-1)
        x = x + self.leave((share @ v).reshape(b, c, h, w))
        one, other = self.deep(self.wide(self.norms[1](x))).chunk(2, 1)
        made: Tensor = x + self.narrow(F.gelu(one) * other)
        return made


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "FFT of patches (FFTformer's kind)": lambda: Shaped(PatchFourier),
    "FFT of the picture": lambda: Shaped(WholeFourier),
    "experts, the two likeliest by index": lambda: Shaped(Routed),
    "experts, weighted at each pixel": lambda: Shaped(Mixture),
    "shifted windows (Swin's kind)": lambda: Shaped(Windows),
    "overlapping windows (HAT's kind)": lambda: Shaped(Overlapping),
    "enlarges 4 times (ESRGAN's kind)": Dense,
    "grey (DnCNN's kind)": Grey,
    "NAFNet's kind": lambda: Shaped(Simple),
    "Restormer's kind": lambda: Shaped(Transposed),
}


def network(name: str) -> tuple[nn.Module, int]:
    """The network of that name with weights of its own, ready to run, and how many channels its pictures have."""
    torch.manual_seed(list(NETWORKS).index(name))
    made = NETWORKS[name]().eval().requires_grad_(False)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return made, 1 if name.startswith("grey") else 3
