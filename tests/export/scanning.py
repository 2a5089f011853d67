"""A stand-in for restorers with selective scans: a map is walked along in four directions, the steps chosen from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scan = Callable[..., Tensor]


def selective_scan(u: Tensor, delta: Tensor, rates: Tensor, enter: Tensor, leave: Tensor, skip: Tensor) -> Tensor:
    """The recurrence as it is defined, a turn for each token: u, delta BxDxL, rates DxN, enter and leave BxNxL."""
    delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, rates))
    entry = torch.einsum("bdl,bnl,bdl->bdln", delta, enter, u)
    state = torch.zeros(u.shape[0], u.shape[1], rates.shape[1], device=u.device)
    found = []
    for i in range(u.shape[2]):
        state = decay[:, :, i] * state + entry[:, :, i]
        found.append(torch.einsum("bdn,bn->bd", state, leave[:, :, i]))
    return torch.stack(found, dim=2) + u * skip[:, None]


class FourDirections(nn.Module):
    """Rows, columns, and both backwards; each with steps and matrices of its own, made from the tokens."""

    def __init__(self, dim: int, states: int, scan: Scan) -> None:
        super().__init__()
        self.scan, self.states, self.rank = scan, states, max(1, dim // 4)
        self.project = nn.Parameter(torch.randn(4, self.rank + 2 * states, dim) * 0.3)
        self.widen = nn.Parameter(torch.randn(4, dim, self.rank) * 0.3)
        self.bias = nn.Parameter(torch.rand(4, dim, 1) - 1.5)
        self.rates = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(4, dim, 1))
        self.skip = nn.Parameter(torch.ones(4, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x BxCxHxW -> BxHxWxC"""
        b, c, h, w = x.shape
        ways = torch.stack([x.flatten(2), x.transpose(2, 3).contiguous().view(b, c, h * w)], dim=1)
        ways = torch.cat([ways, ways.flip(-1)], dim=1)
        made = torch.einsum("bkdl,kcd->bkcl", ways, self.project)
        steps, enter, leave = torch.split(made, [self.rank, self.states, self.states], dim=2)
        steps = torch.einsum("bkrl,kdr->bkdl", steps, self.widen) + self.bias
        out = [
            self.scan(ways[:, k], steps[:, k], -torch.exp(self.rates[k]), enter[:, k], leave[:, k], self.skip[k])
            for k in range(4)
        ]
        rows, columns = out[0] + out[2].flip(-1), out[1] + out[3].flip(-1)
        columns = columns.view(b, c, w, h).transpose(2, 3).contiguous().view(b, c, h * w)
        return self.norm((rows + columns).transpose(1, 2)).view(b, h, w, c)


class ScanBlock(nn.Module):
    """Norm, a projection to map and gate, a depthwise convolution, the scans, the gate."""

    def __init__(self, dim: int, states: int, scan: Scan) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.near = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.walk = FourDirections(dim, states, scan)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.enter(self.norm(x.permute(0, 2, 3, 1))).chunk(2, dim=-1)
        y = F.silu(self.near(y.permute(0, 3, 1, 2).contiguous()))
        return x + self.leave(self.walk(y) * F.silu(gate)).permute(0, 3, 1, 2)


class ScanningRestorer(nn.Module):
    """A quarter of the size, blocks of scans, convolutions around."""

    def __init__(self, dim: int = 8, states: int = 4, blocks: int = 2, scan: Scan = selective_scan) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, dim, 4, stride=4), nn.Conv2d(dim, 48, 3, padding=1)
        self.blocks = nn.ModuleList(ScanBlock(dim, states, scan) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        f = self.enter(x)
        for block in self.blocks:
            f = block(f)
        return x + F.pixel_shuffle(self.leave(f), 4)


def scanning_restorer(seed: int = 0, scan: Scan = selective_scan, blocks: int = 2) -> ScanningRestorer:
    torch.manual_seed(seed)
    return ScanningRestorer(scan=scan, blocks=blocks).eval()
