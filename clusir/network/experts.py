"""Mixture-of-experts block: experts of different kernel and rank, of which the router's top-k run."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.layers import ChannelAttention, make_feed_forward, make_norm, scale_init
from clusir.network.pooled import PooledStatistics

__all__ = ["Expert", "MoEBlock", "SparseExperts"]


class Expert(nn.Module):
    """u + W_o( DW_kxk(W_a u) * SiLU(W_b s) ), low rank. u, s: BxCxHxW; the result too.

    MoCE-IR's expert with its windowed FFT attention replaced by a depthwise convolution of the window's reach [ours].
    """

    def __init__(self, width: int, rank: int, kernel: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, rank, 1, bias=False)
        self.modulate = nn.Conv2d(width, rank, 1, bias=False)
        self.body = nn.Conv2d(rank, rank, kernel, padding=kernel // 2, groups=rank, bias=False)
        self.leave = nn.Conv2d(rank, width, 1, bias=False)

    def forward(self, u: Tensor, shared: Tensor) -> Tensor:
        hidden = self.body(self.enter(u)) * F.silu(self.modulate(shared))
        out: Tensor = u + self.leave(hidden)
        return out


class SparseExperts(nn.Module):
    """sum_e gate_e * Expert_e(u, s), running for each sample only the experts whose gate is not zero.

    Which expert runs depends on data, so this form does not export: ``clusir.export.experts.dense`` replaces it. With
    ``everywhere`` set every expert runs for every sample, which a CUDA graph needs: the same sum.
    """

    everywhere = False

    def __init__(self, width: int, ranks: Sequence[int], kernels: Sequence[int]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(width, r, k) for r, k in zip(ranks, kernels, strict=True))

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        """u, shared: BxCxHxW; gate: BxE. Returns BxCxHxW."""
        mixed = u.new_zeros(u.shape)
        for index, expert in enumerate(self.experts):
            if self.everywhere:
                mixed = mixed + gate[:, index].view(-1, 1, 1, 1) * expert(u, shared)
                continue
            rows = (gate[:, index] > 0).nonzero(as_tuple=True)[0]
            if rows.numel() == 0:
                continue
            weight = gate[rows, index].view(-1, 1, 1, 1)
            found = weight * expert(u[rows], shared[rows])
            mixed = mixed.index_add(0, rows, found.to(mixed.dtype))  # autocast: gates are float32, maps may not be
        return mixed


class MoEBlock(nn.Module):
    """The routed block of an encoder level: shared path, chosen experts, residual. BxCxHxW and gate BxE to BxCxHxW.

    ``experts``: rank and kernel size of each. ``attention`` selects MoCE-IR's form (a channel-attention expert that all
    pictures share, and cross-attention from the routed result to it); without it the experts see the input twice and
    are added back through one 1x1 convolution.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        experts: Sequence[tuple[int, int]],
        *,
        norm: str,
        attention: bool,
        feed_forward: str,
        ratio: float,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, width)
        self.experts = SparseExperts(width, *zip(*experts, strict=True))
        self.leave = scale_init(nn.Conv2d(width, width, 1, bias=False))
        self.attention = attention
        if attention:
            self.enter = nn.Conv2d(width, width, 1, bias=False)
            self.shared = nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False), ChannelAttention(width, heads, depthwise=True)
            )
            self.cross = ChannelAttention(width, heads, depthwise=True, context_kernel=7)
            scale_init(self.cross.project)
            self.norm_feed_forward = make_norm(norm, width)
            self.feed_forward = make_feed_forward(feed_forward, width, ratio)

    def forward(self, x: Tensor, gate: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        u = self.norm(x)
        if not self.attention:
            out: Tensor = x + self.leave(self.experts(u, u, gate))
            return out
        enter, attend = self.shared
        shared = attend(enter(u), pooled=pooled)
        routed = self.leave(self.experts(self.enter(u), shared, gate))
        x = x + self.cross(routed, shared, pooled)
        done: Tensor = x + self.feed_forward(self.norm_feed_forward(x))
        return done
