"""The parts of one level of the network: encoding with its router and experts, modulation of a skip, decoding."""

from __future__ import annotations

from torch import Tensor, nn

from clusir.network.config import ModelConfig
from clusir.network.evidence import FAMILY_COUNT
from clusir.network.experts import MoEBlock
from clusir.network.frequency import DegradationPrompt, FrequencyModulation
from clusir.network.layers import FeedForwardBlock, WaveletTransformerBlock
from clusir.network.pooled import PooledStatistics
from clusir.network.router import ClusterRouter, Routing
from clusir.network.traces import TRACES

__all__ = ["EncoderLevel", "SkipModulation", "make_block", "make_decoder"]


class EncoderLevel(nn.Module):
    """Wavelet transformer blocks, the router that reads their features, and the experts it opens."""

    def __init__(self, config: ModelConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.blocks = nn.Sequential(*(make_block(config, level) for _ in range(config.blocks[level])))
        self.router = ClusterRouter(
            width,
            config.clusters[level],
            config.prototype_dim,
            config.experts,
            config.top_k,
            TRACES if config.traces else 0,
            FAMILY_COUNT if config.permissions else 0,
        )
        self.moe = MoEBlock(
            width,
            config.heads[level],
            [
                (max(8, int(width * fraction)), kernel)
                for fraction, kernel in zip(config.expert_rank_fractions, config.expert_kernels, strict=True)
            ],
            norm=config.norm,
            attention=config.moe_attention,
            feed_forward=config.feed_forward,
            ratio=config.ffn_ratio,
        )

    def forward(
        self,
        x: Tensor,
        traces: Tensor | None,
        given: tuple[Tensor, Tensor] | None,
        pooled: PooledStatistics | None = None,
        permissions: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:
        for block in self.blocks:
            x = block(x, pooled)
        routing = (
            self.router(x, traces, pooled, permissions)
            if given is None
            else self.router.complete(given[0], given[1], given[1])
        )
        together = pooled is not None and pooled.together
        gate = routing.gate.expand(x.shape[0], -1) if together else routing.gate
        return self.moe(x, gate, pooled), routing


class SkipModulation(nn.Module):
    """Prompt and DAFMM of one level."""

    def __init__(self, config: ModelConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        block = make_block(config, level) if config.prompt_block else None
        self.prompt = DegradationPrompt(width, config.clusters[level], config.prompt_size, config.prompt_width, block)
        self.modulate = FrequencyModulation(
            width, config.prototype_dim, config.frequency_groups, config.heads[level], cross=config.frequency_cross
        )

    def forward(self, x: Tensor, routing: Routing, pooled: PooledStatistics | None = None) -> Tensor:
        prompt = self.prompt(x, routing.posterior, pooled)
        out: Tensor = self.modulate(x, prompt, routing.cue, pooled)
        return out


def make_block(config: ModelConfig, level: int) -> WaveletTransformerBlock:
    """One wavelet transformer block of a level."""
    return WaveletTransformerBlock(
        config.widths[level],
        config.heads[level],
        config.attention_depthwise,
        config.norm,
        config.feed_forward,
        config.ffn_ratio,
    )


def make_decoder(config: ModelConfig, level: int, count: int) -> nn.Sequential:
    """``count`` blocks of the decoder or the refinement at a level."""
    if config.decoder_attention:
        return nn.Sequential(*(make_block(config, level) for _ in range(count)))
    width, ratio = config.widths[level], config.ffn_ratio
    return nn.Sequential(*(FeedForwardBlock(width, config.norm, config.feed_forward, ratio) for _ in range(count)))
