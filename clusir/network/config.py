"""All numbers of the network: :class:`ModelConfig`, and the named configurations.

The published description of ClusIR (arXiv 2512.10948) gives no numbers, so every unknown is a field with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clusir.errors import UsageError

__all__ = ["CONFIGS", "ModelConfig"]


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
    # Clusters: the published description gives no numbers. 8 covers 5 to 7 kinds of degradation with room for mixtures.
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
    # [ours], see clusir.network.cues: gains of the decoder's hidden channels chosen by the clusters, and a smooth
    # tone map.
    decoder_gains: bool = False
    tone: bool = False
    # [ours] Statistics of the picture itself for the routers. A linear classifier told nothing, JPEG, Gaussian and
    # motion blur apart with 0.91/0.93/0.78/0.80 of them right, and with 0.73/0.47/0.51/0.55 by the features that
    # level 1 pools (55 crops of 192 px of each, 4-fold): without them JPEG and blur got one cluster, and one treatment.
    traces: bool = False
    # [ours] Width of the degradation cue (clusir.network.cues) that steers the decoder's gains beside the clusters; 0
    # is none.
    damage_cue: int = 0
    # [ours] A sharpening filter blended for each picture stands before the network (clusir.network.deblur).
    deblur: bool = False
    # [ours] A vector of permissions, one for each family of degradations, steers everything that mends, and the
    # picture's own evidence for each family is judged (clusir.network.evidence).
    permissions: bool = False

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
        if self.deblur and not (self.damage_cue and self.stem == "haar"):
            raise UsageError('model config: deblur needs damage_cue, whose statistics it reads, and stem "haar"')
        if self.damage_cue and not (self.decoder_gains and self.traces):
            raise UsageError("model config: damage_cue needs decoder_gains and traces")
        if self.permissions and not (self.damage_cue and self.deblur and self.tone):
            raise UsageError("model config: permissions steer damage_cue, deblur and tone; all three are needed")
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
        damage_cue=32,
        deblur=True,
    ),
}
