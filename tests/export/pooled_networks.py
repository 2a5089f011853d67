"""Small networks whose answer depends on the whole picture, each in another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def seeded(network: nn.Module, seed: int = 1) -> nn.Module:
    """In eval mode, with weights that do not depend on what ran before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return network.eval()


class Squeeze(nn.Module):
    """Channel attention from a global mean (squeeze and excitation), twice in a row."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.gates = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
            for _ in range(2)
        )
        self.bodies = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        for gate, body in zip(self.gates, self.bodies, strict=True):
            y = body(y) * torch.sigmoid(3 * gate(y)) + y
        made: Tensor = x + 0.3 * self.tail(y)
        return made


class Transposed(nn.Module):
    """Attention between channels: normalised queries and keys, their Gram matrix over all pixels."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.qkv, self.local = (
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        b, c, h, w = y.shape
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in self.local(self.qkv(y)).chunk(3, dim=1))
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        attention = (2 * q @ k.transpose(-2, -1)).softmax(dim=-1)
        made: Tensor = x + 0.1 * self.tail((attention @ v).reshape(b, c, h, w) + y)
        return made


class InstanceNorms(nn.Module):
    """Instance norms, at full and at half the size."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down, self.up = nn.Conv2d(width, width, 2, stride=2), nn.ConvTranspose2d(width, width, 2, stride=2)
        self.first, self.second = nn.InstanceNorm2d(width, 1e-2, affine=True), nn.InstanceNorm2d(width, 1e-2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(self.head(x)))
        z = torch.relu(self.second(self.down(y)))
        made: Tensor = x + 0.05 * self.tail(y + self.up(z))
        return made


class GroupNorms(nn.Module):
    """A group norm: channels and pixels of a group in one axis."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.norm = nn.GroupNorm(3, width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + 0.1 * self.tail(torch.relu(self.norm(self.head(x))))
        return made


class SoftmaxPool(nn.Module):
    """A context vector: features weighed by a softmax over all pixels."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.score, self.change = nn.Conv2d(width, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        b, c, h, w = y.shape
        weights = self.score(y).reshape(b, 1, h * w).softmax(-1)
        context = (y.reshape(b, c, h * w) @ weights.transpose(1, 2)).reshape(b, c, 1, 1)
        made: Tensor = x + 0.3 * self.tail(y + self.change(context))
        return made


class Largest(nn.Module):
    """Channel attention from the mean and the maximum; the mean is taken of rows, then of columns."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        gate = torch.sigmoid(self.gate(y.mean(3).mean(2)) + self.gate(y.amax((2, 3))))
        made: Tensor = x + 0.3 * self.tail(y * gate[:, :, None, None])
        return made


class Everywhere(nn.Module):
    """Attention between all pixels of a coarse map: no pool of numbers stands for it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 8, stride=8), nn.ConvTranspose2d(width, 3, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        flat = y.flatten(2).transpose(1, 2)
        seen = (flat @ flat.transpose(1, 2)).softmax(-1) @ flat
        made: Tensor = x + 0.5 * self.tail(seen.transpose(1, 2).reshape(y.shape))
        return made


class Padded(nn.Module):
    """Channel attention from the mean of a map that is made a multiple of 16 px, and of a sixteenth of it."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.gate, self.down = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 16, stride=16)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = torch.relu(self.head(nn.functional.pad(x, (0, -width % 16, 0, -height % 16))))
        y = y * torch.sigmoid(3 * self.gate(y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(self.down(y).mean((2, 3), keepdim=True))
        made: Tensor = x + 0.3 * self.tail(y)[:, :, :height, :width]
        return made


class Bordered(nn.Module):
    """Channel attention from the mean of a map that is larger than the picture: by 2 px, at every size."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=2), nn.Conv2d(width, 3, 3)
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        made: Tensor = x + 0.3 * self.tail(y * torch.sigmoid(3 * self.gate(y.mean((2, 3), keepdim=True))))
        return made
