"""The network, in forward order, and its named configurations.

An independent implementation of the published description of ClusIR (arXiv 2512.10948); its code and numbers are not
public, so every unknown is a field of :class:`ModelConfig` with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusir.cues import ClusterGain, ToneMap
from clusir.errors import UsageError
from clusir.experts import MoEBlock
from clusir.frequency import DegradationPrompt, FrequencyModulation
from clusir.layers import Down, FeedForwardBlock, Up, WaveletTransformerBlock
from clusir.pooled import PooledStatistics
from clusir.router import ClusterRouter, Routing
from clusir.traces import TRACES, DamageTraces
from clusir.wavelet import haar_forward, haar_inverse

__all__ = ["CONFIGS", "ClusIR", "ModelConfig", "Restoration"]

# The stem starts with the weak Haar high bands lifted. Relative L1 against the damaged input in steps 161 to 200 of
# denoising (one seed, equal settings): -0.25 with a gain of 4, -0.16 without. Other gains were not compared.
_HIGH_BAND_GAIN = 4.0


@dataclass(frozen=True)
class ModelConfig:
    """All numbers of the network. Tuples hold one value per level, finest first."""

    # Width, depth, heads: Restormer's family (48, 4/6/6/8, refine 4), shared by PromptIR, AdaIR, EvoIR and MoCE-IR.
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]  # levels 1..n-1: the deepest level has no decoder
    refine_blocks: int
    heads: tuple[int, ...]
    # "conv" is Restormer's full-resolution stem; "haar" transforms the picture first, a quarter of the pixels.
    stem: str = "conv"
    # "layer" is Restormer's; "none" suits CPU runtimes (a channel LayerNorm breaks their blocked layout).
    norm: str = "layer"
    feed_forward: str = "gdfn"
    ffn_ratio: float = 2.66  # Restormer's
    resample: str = "shuffle"
    skip: str = "cat"  # how encoder features join the decoder: "cat" + 1x1 convolution, or "add"
    attention_depthwise: bool = True  # a depthwise 3x3 behind each of q, k, v, as in MDTA
    # Wavelet attention in the decoder too, or in the encoder only: the Haar steps are bound by memory (tiny took 77 ms
    # with them in every decoder block and 47 ms without, on ONNX Runtime in two runs on a busy machine), and the
    # published description puts them in the encoder.
    decoder_attention: bool = True
    # Clusters: the published description gives no numbers. 8 covers 5 to 7 kinds of damage with room for mixtures.
    clusters: tuple[int, ...] = (8, 8, 8, 8)
    prototype_dim: int = 64
    # Experts: E = 4, k = 1 and the ranks' and kernels' spread are MoCE-IR's class defaults.
    expert_rank_fractions: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    expert_kernels: tuple[int, ...] = (3, 5, 7, 9)
    top_k: int = 1
    moe_attention: bool = True
    # DAFMM stands on these levels (1 = finest), at the bottleneck among them; prompts where it stands.
    frequency_levels: tuple[int, ...] = (1, 2, 3, 4)
    frequency_groups: int = 8
    frequency_cross: bool = True
    prompt_size: int = 8
    prompt_width: int = 64
    prompt_block: bool = True
    # [ours], see clusir.cues: gains of the decoder's hidden channels chosen by the clusters, and a smooth tone map.
    decoder_gains: bool = False
    tone: bool = False
    # [ours] Statistics of the picture itself for the routers. A linear classifier told nothing, JPEG, Gaussian and
    # motion blur apart with 0.91/0.93/0.78/0.80 of them right, and with 0.73/0.47/0.51/0.55 by the features that
    # level 1 pools (55 crops of 192 px of each, 4-fold): without them JPEG and blur got one cluster, and one treatment.
    traces: bool = False

    def __post_init__(self) -> None:
        levels = len(self.widths)
        per_level = (self.blocks, self.heads, self.clusters)
        if levels < 2 or any(len(t) != levels for t in per_level) or len(self.decoder_blocks) != levels - 1:
            raise UsageError(
                f"model config: {levels} widths need as many blocks, heads and clusters, and one decoder less"
            )
        if len(self.expert_kernels) != len(self.expert_rank_fractions):
            raise UsageError("model config: expert_kernels and expert_rank_fractions must have the same length")
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(f"model config: top_k {self.top_k} is not within 1..{self.experts}")
        if not set(self.frequency_levels) <= set(range(1, levels + 1)):
            raise UsageError(f"model config: frequency_levels {self.frequency_levels} are not within 1..{levels}")
        choices = {
            "stem": ("conv", "haar"),
            "norm": ("layer", "none"),
            "feed_forward": ("gdfn", "conv"),
            "resample": ("shuffle", "strided"),
            "skip": ("cat", "add"),
        }
        if self.decoder_gains and (self.decoder_attention or self.feed_forward != "conv"):
            raise UsageError('model config: decoder_gains needs feed_forward "conv" and decoder_attention false')
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"model config: {name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")

    @property
    def levels(self) -> int:
        return len(self.widths)

    @property
    def experts(self) -> int:
        return len(self.expert_kernels)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: every downsampling, and one Haar step at the
        bottom."""
        return (2 if self.stem == "haar" else 1) * 2**self.levels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict` after JSON (lists become tuples). Raises UsageError on unknown fields."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise UsageError(f"model config: unknown fields {', '.join(sorted(unknown))}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


_SMALL = ModelConfig(
    widths=(32, 64, 128, 256),
    blocks=(4, 6, 6, 8),
    decoder_blocks=(2, 4, 4),
    refine_blocks=4,
    heads=(1, 2, 4, 8),
    ffn_ratio=2.0,
)

CONFIGS: dict[str, ModelConfig] = {
    "base": ModelConfig(
        widths=(48, 96, 192, 384),
        blocks=(4, 6, 6, 8),
        decoder_blocks=(2, 4, 4),
        refine_blocks=4,
        heads=(1, 2, 4, 8),
    ),
    "small": _SMALL,
    # The one that ships. Three levels below a Haar stem, dense 3x3 convolutions without norms, one head: the parts that
    # CPU runtimes run near their peak. Every part of the published description is kept.
    "tiny": ModelConfig(
        widths=(32, 64, 96),
        blocks=(1, 1, 2),
        decoder_blocks=(1, 1),
        refine_blocks=2,
        heads=(1, 1, 1),
        stem="haar",
        norm="none",
        feed_forward="conv",
        ffn_ratio=1.0,
        resample="strided",
        skip="add",
        attention_depthwise=False,
        decoder_attention=False,
        clusters=(8, 8, 8),
        prototype_dim=32,
        expert_rank_fractions=(0.25, 0.25, 0.25, 0.25),
        moe_attention=False,
        frequency_levels=(2, 3),
        frequency_cross=False,
        prompt_width=16,
        prompt_block=False,
        decoder_gains=True,
        tone=True,
        traces=True,
    ),
}


class Restoration(NamedTuple):
    """What the network returns: restored BxCxHxW (unclipped), and per routed level (finest first) the cluster posterior
    BxL, the gate BxE after top-k, and the experts' probability BxE before it."""

    restored: Tensor
    posteriors: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    expert_probabilities: tuple[Tensor, ...]


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
        )
        self.moe = MoEBlock(
            width,
            config.heads[level],
            tuple(max(8, int(width * f)) for f in config.expert_rank_fractions),
            config.expert_kernels,
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
    ) -> tuple[Tensor, Routing]:
        for block in self.blocks:
            x = block(x, pooled)
        routing = (
            self.router(x, traces, pooled) if given is None else self.router.complete(given[0], given[1], given[1])
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


class ClusIR(nn.Module):
    """All-in-one restoration: Bx3xHxW float in 0..1 to :class:`Restoration`.

    H and W must be multiples of ``config.size_multiple`` (16; the runners pad). In eval the result is deterministic and
    a sample's result does not depend on its neighbours in the batch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.widths, config.levels - 1
        picture = 12 if config.stem == "haar" else 3
        self.stem = nn.Conv2d(picture, widths[0], 3, padding=1, bias=False)
        if config.stem == "haar":
            with torch.no_grad():
                self.stem.weight[:, 3:] *= _HIGH_BAND_GAIN
        self.encoder = nn.ModuleList(EncoderLevel(config, level) for level in range(config.levels))
        self.down = nn.ModuleList(Down(widths[i], widths[i + 1], config.resample) for i in range(last))
        self.modulation = nn.ModuleDict({str(i): SkipModulation(config, i - 1) for i in config.frequency_levels})
        self.up = nn.ModuleList(Up(widths[i + 1], widths[i], config.resample) for i in range(last))
        merge = (nn.Conv2d(2 * widths[i], widths[i], 1, bias=False) for i in range(last))
        self.merge = nn.ModuleList(merge if config.skip == "cat" else ())
        self.decoder = nn.ModuleList(make_decoder(config, i, config.decoder_blocks[i]) for i in range(last))
        self.refine = make_decoder(config, 0, config.refine_blocks)
        self.head = nn.Conv2d(widths[0], picture, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)  # an untrained network returns its input
        hidden = [int(width * config.ffn_ratio) for width in widths]
        counts = (*config.decoder_blocks, config.refine_blocks)
        self.gains = nn.ModuleList(
            nn.ModuleList(ClusterGain(sum(config.clusters), hidden[level]) for _ in range(count))
            for level, count in zip((*range(last), 0), counts, strict=True)
        ) if config.decoder_gains else None  # fmt: skip
        self.tone = ToneMap(widths[last]) if config.tone else None
        self.traces = DamageTraces() if config.traces else None

    def forward(
        self,
        image: Tensor,
        routing: tuple[tuple[Tensor, Tensor], ...] | None = None,
        pooled: PooledStatistics | None = None,
    ) -> Restoration:
        """Restore a batch. ``routing`` gives each level's (posterior BxL, gate BxE) from outside instead of the
        routers' own, so that all tiles of a picture can share one routing; ``pooled`` records, or gives, the other
        numbers that are pooled over the picture. Raises ValueError on sizes that do not fit."""
        multiple = self.config.size_multiple
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ValueError(
                f"image is {image.shape[-2]}x{image.shape[-1]}; height and width must be multiples of {multiple}: "
                "pad it, or use clusir.Restorer, which tiles and pads"
            )
        x = self.embed(image)
        traces = self.traces(image, pooled) if self.traces is not None and routing is None else None
        skips: list[Tensor] = []
        routings: list[Routing] = []
        for level, encode in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](x)  # B x C_l x H/2^l x W/2^l
            x, found = encode(x, traces, None if routing is None else routing[level], pooled)
            key = str(level + 1)
            skips.append(self.modulation[key](x, found, pooled) if key in self.modulation else x)
            routings.append(found)
        x = skips.pop()
        base = image if self.tone is None else self.tone(x, image)
        posterior = torch.cat([r.posterior for r in routings], dim=1)
        for level in reversed(range(len(skips))):
            x = self.join(self.up[level](x), skips[level], level)
            x = self.decode(self.decoder[level], x, posterior, level, pooled)
        x = self.decode(self.refine, x, posterior, -1, pooled)
        restored = base + self.picture(self.head(x))
        return Restoration(
            restored,
            tuple(r.posterior for r in routings),
            tuple(r.gate for r in routings),
            tuple(r.expert_probability for r in routings),
        )

    def embed(self, image: Tensor) -> Tensor:
        """Shallow features: Bx3xHxW to BxC_1xHxW, or half that size behind a Haar stem.

        Centring helps a little where the high bands start unscaled (-0.19 against -0.16 in the measure above) and makes
        no difference with their gain (-0.247 against -0.250).
        """
        centred = image - 0.5
        if self.config.stem == "haar":
            centred = torch.cat(haar_forward(centred), dim=1)
        out: Tensor = self.stem(centred)
        return out

    def decode(
        self, blocks: nn.Module, x: Tensor, posterior: Tensor, stage: int, pooled: PooledStatistics | None
    ) -> Tensor:
        """The blocks of one decoder level (or, at stage -1, the refinement) with the gains that the clusters choose."""
        assert isinstance(blocks, nn.Sequential)
        for index, block in enumerate(blocks):
            if self.config.decoder_attention:
                x = block(x, pooled)
            else:
                x = block(x, None if self.gains is None else self.gains[stage][index](posterior))  # type: ignore[index]
        return x

    def statistics_size(self) -> int:
        """How many pooled statistics a picture has: S of :class:`clusir.pooled.PooledStatistics`."""
        pooled, side = PooledStatistics(), self.config.size_multiple
        parameter = next(self.parameters())
        training = self.training
        with torch.inference_mode():
            self.eval()(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device), None, pooled)
        self.train(training)
        return pooled.recorded().shape[1]

    def picture(self, x: Tensor) -> Tensor:
        """The inverse of the stem's transform: the residual as a picture Bx3xHxW."""
        return haar_inverse(x[:, :3], x[:, 3:]) if self.config.stem == "haar" else x

    def join(self, x: Tensor, skip: Tensor, level: int) -> Tensor:
        if self.config.skip == "add":
            return x + skip
        out: Tensor = self.merge[level](torch.cat((x, skip), dim=1))
        return out
