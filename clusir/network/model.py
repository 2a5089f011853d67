"""The network, in forward order.

An independent implementation of the published description of ClusIR (arXiv 2512.10948); its code and numbers are not
public, so every unknown is a field of :class:`clusir.network.config.ModelConfig` with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusir.network.config import CONFIGS, ModelConfig
from clusir.network.cues import BLUR, TONAL, ClusterGain, DegradationCue, ToneMap
from clusir.network.deblur import SteeredDeblur
from clusir.network.evidence import FAMILY_COUNT, EvidenceHead
from clusir.network.exposure import CORRECTIONS, ExposureHead, correct
from clusir.network.layers import Down, Up
from clusir.network.levels import EncoderLevel, SkipModulation, make_decoder
from clusir.network.pilot import TAKEN, PilotFilter
from clusir.network.pooled import PooledStatistics, pooled_value
from clusir.network.router import Routing
from clusir.network.traces import DegradationTraces
from clusir.network.trust import FARTHEST, TrustHead
from clusir.network.wavelet import haar_forward, haar_inverse

__all__ = ["CONFIGS", "ClusIR", "ModelConfig", "Restoration"]

# The stem starts with the weak Haar high bands lifted. Relative L1 against the degraded input in steps 161 to 200 of
# denoising (one seed, equal settings): -0.25 with a gain of 4, -0.16 without. Other gains were not compared.
_HIGH_BAND_GAIN = 4.0


class Restoration(NamedTuple):
    """What the network returns: restored BxCxHxW (unclipped), and per routed level (finest first) the cluster posterior
    BxL, the gate BxE after top-k, and the experts' probability BxE before it. ``evidence`` Bx6 in 0..1: how likely each
    family is in the picture (None where the configuration has no permissions, or the statistics were given)."""

    restored: Tensor
    posteriors: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    expert_probabilities: tuple[Tensor, ...]
    evidence: Tensor | None = None


class _Seen(NamedTuple):
    """What was found before any feature: the cue, what deblurring adds to the grey picture, evidence, permissions, and
    the statistics that evidence was read from."""

    cue: Tensor | None = None
    added: Tensor | None = None
    evidence: Tensor | None = None
    permissions: Tensor | None = None
    known: Tensor | None = None


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
            nn.ModuleList(ClusterGain(sum(config.clusters), hidden[level], config.damage_cue) for _ in range(count))
            for level, count in zip((*range(last), 0), counts, strict=True)
        ) if config.decoder_gains else None  # fmt: skip
        families = FAMILY_COUNT if config.permissions else 0
        self.tone = ToneMap(widths[last], families) if config.tone else None
        self.traces = DegradationTraces() if config.traces else None
        self.cue = DegradationCue(config.damage_cue, families) if config.damage_cue else None
        self.deblur = SteeredDeblur() if config.deblur else None
        self.evidence = EvidenceHead() if config.permissions else None
        self.trust = TrustHead(families) if config.permissions else None
        self.exposure = ExposureHead() if config.permissions else None
        self.pilot = PilotFilter() if config.permissions else None

    def forward(
        self,
        image: Tensor,
        routing: tuple[tuple[Tensor, Tensor], ...] | None = None,
        pooled: PooledStatistics | None = None,
        permissions: Tensor | None = None,
    ) -> Restoration:
        """Restore a batch. Raises ValueError on sizes that do not fit.

        ``routing`` gives each level's (posterior BxL, gate BxE) from outside instead of the routers' own, so that all
        tiles of a picture can share one routing; ``pooled`` records, or gives, the other numbers that are pooled over
        the picture.

        ``permissions`` Bx6 says which families may be mended, and how far: 0..1, or -1..0 for as far as that where the
        evidence reaches the family's threshold, or -2..-1 for as far as -1 - p where it reaches its floor (None: all
        -1). Where none is over 0, as large a share of what was mended is kept as can be trusted. They are for
        configurations with ``permissions`` and are not read where ``pooled`` replays; where it takes the batch together
        theirs is 1."""
        multiple = self.config.size_multiple
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ValueError(
                f"image is {image.shape[-2]}x{image.shape[-1]}; height and width must be multiples of {multiple}: "
                "pad it, or use clusir.Restorer, which tiles and pads"
            )
        traces = None if self.traces is None or routing is not None else self.traces(image, pooled)
        asked, source = self.asked(image, permissions, pooled), image
        seen = self.look(image, traces, pooled, asked)
        cue = seen.cue
        image = image if seen.added is None else image + seen.added
        x = self.embed(image)
        skips: list[Tensor] = []
        routings: list[Routing] = []
        for level, encode in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](x)  # B x C_l x H/2^l x W/2^l
            given = None if routing is None else routing[level]
            x, found = encode(x, traces, given, pooled, seen.permissions)
            key = str(level + 1)
            skips.append(self.modulation[key](x, found, pooled) if key in self.modulation else x)
            routings.append(found)
        x = skips.pop()
        base = image if self.tone is None else self.tone(x, image, pooled, seen.permissions)
        posterior = torch.cat([r.posterior for r in routings], dim=1)
        finish = partial(self.finish, (posterior, cue), self.correction(seen, source, base, pooled), pooled)
        restored, away = finish(x, skips, base)
        if self.trust is not None and not self.training:  # what is learnt is the whole of it
            allowed = (asked, seen.permissions)
            judge = partial(self.judge, finish, (x, skips, base), source, (restored, away), allowed, pooled)
            judged = pooled_value(pooled, (1 + TAKEN,), judge)
            share = judged[:, :1, None, None]
            restored = restored * share + source * (1 - share)
            assert self.pilot is not None
            restored = restored + self.pilot(away * share, restored, judged[:, 1:])
        return Restoration(
            restored,
            tuple(r.posterior for r in routings),
            tuple(r.gate for r in routings),
            tuple(r.expert_probability for r in routings),
            seen.evidence,
        )

    def finish(
        self,
        steer: tuple[Tensor, Tensor | None],
        correction: Tensor | None,
        pooled: PooledStatistics | None,
        x: Tensor,
        skips: Sequence[Tensor],
        base: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """From the deepest features ``x`` and the finer ones, ``skips``, to the restored picture, Bx3xHxW: ``base`` and
        what is added to it, with a picture's ``correction``; and to what was taken from ``base``, corrected alike.
        ``steer``: posteriors and cue."""
        for level in reversed(range(len(skips))):
            x = self.join(self.up[level](x), skips[level], level)
            x = self.decode(self.decoder[level], x, steer, level, pooled)
        x = self.decode(self.refine, x, steer, -1, pooled)
        added = self.picture(self.head(x))
        restored = base + added
        if correction is None:
            return restored, -added
        return correct(restored.clamp(-FARTHEST, FARTHEST), correction), -added * (1 + correction[:, :3, None, None])

    def correction(self, seen: _Seen, image: Tensor, base: Tensor, pooled: PooledStatistics | None) -> Tensor | None:
        """A gain and a shift of each colour, BxCORRECTIONS; None in training, where what is learnt does without."""
        if self.exposure is None or self.training:
            return None

        def read() -> Tensor:
            assert self.exposure is not None
            assert seen.known is not None
            assert seen.permissions is not None
            tonal = seen.permissions[:, TONAL].amax(dim=1, keepdim=True)
            out: Tensor = self.exposure(seen.known, image, base, tonal, pooled)
            return out

        return pooled_value(pooled, (CORRECTIONS,), read)

    def judge(
        self,
        finish: Callable[[Tensor, Sequence[Tensor], Tensor], tuple[Tensor, Tensor]],
        deep: tuple[Tensor, Sequence[Tensor], Tensor],
        source: Tensor,
        finished: tuple[Tensor, Tensor],
        permissions: tuple[Tensor | None, Tensor | None],
        pooled: PooledStatistics | None,
    ) -> Tensor:
        """The share of what was mended that is kept, and what the filter behind it is told: Bx(1+TAKEN). ``deep``: what
        ``finish`` takes; ``finished``: what it gives of all of ``source``, Bx3xHxW; ``permissions``, BxF each: asked
        for, and left by evidence.
        Of the windows of a picture their middles tell, a quarter of their pixels: a router graph would have no decoder
        but for this."""
        asked, permitted = permissions
        restored, away = finished
        assert self.trust is not None
        assert self.pilot is not None
        assert asked is not None
        assert permitted is not None
        if pooled is not None and pooled.together and not self.config.decoder_attention:
            x, skips, base = deep
            steps = [(2 if self.config.stem == "haar" else 1) << level for level in range(self.config.levels)]
            middle = partial(self.middle, source)
            inner = [middle(skip, step) for skip, step in zip(skips, steps, strict=False)]
            restored, away = finish(middle(x, steps[-1]), inner, middle(base, 1))
            source = middle(source, 1)
        share = self.trust(asked, permitted, source, restored, pooled)
        return torch.cat((share, self.pilot.taken(away, permitted, share, pooled)), dim=1)

    def middle(self, image: Tensor, x: Tensor, step: int) -> Tensor:
        """The middle half of each axis of features ``x``, BxCxH'xW', of which one stands for ``step`` pixels of
        ``image``, Bx3xHxW; all of them where the picture is small."""
        multiple = self.config.size_multiple
        down, right = (side // (4 * multiple) * (multiple // step) for side in image.shape[-2:])
        return x[..., down : x.shape[-2] - down, right : x.shape[-1] - right]

    def asked(self, image: Tensor, permissions: Tensor | None, pooled: PooledStatistics | None) -> Tensor | None:
        """The permissions asked for, or None: where there are none, or where ``pooled`` replays what they led to."""
        if self.evidence is None or (pooled is not None and pooled.replays):
            return None
        if permissions is None:
            batch = 1 if pooled is not None and pooled.together else image.shape[0]
            permissions = -image.new_ones(batch, FAMILY_COUNT)
        return permissions

    def look(
        self,
        image: Tensor,
        traces: Tensor | None,
        pooled: PooledStatistics | None,
        asked: Tensor | None = None,
    ) -> _Seen:
        """What the picture's own statistics say before any feature: the degradation cue, what deblurring adds to the
        grey picture, Bx1xHxW, the evidence Bx6 and the permissions that it leaves of those ``asked`` for. ``traces``
        where they are known already."""
        if self.cue is None or self.traces is None:
            return _Seen()
        measure, cue = self.traces, self.cue

        @lru_cache(maxsize=1)
        def statistics() -> Tensor:
            measured = measure(image, pooled) if traces is None else traces
            return cue.statistics(image, measured, pooled)

        evidence = permissions = known = None
        if self.evidence is not None and asked is not None:
            known = self.evidence.statistics(image, statistics(), pooled)
            evidence = torch.sigmoid(self.evidence.judge(known))
            permissions = self.evidence.permit(asked, evidence)
        found = cue(statistics, pooled, permissions)
        if self.deblur is None:
            return _Seen(found, None, evidence, permissions, known)
        may = None if permissions is None else permissions[:, BLUR]
        return _Seen(found, self.deblur(image, statistics, pooled, may), evidence, permissions, known)

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
        self,
        blocks: nn.Module,
        x: Tensor,
        seen: tuple[Tensor, Tensor | None],
        stage: int,
        pooled: PooledStatistics | None,
    ) -> Tensor:
        """The blocks of one decoder level (or, at stage -1, the refinement) with the gains that clusters and cue,
        ``seen``, choose."""
        assert isinstance(blocks, nn.Sequential)
        for index, block in enumerate(blocks):
            if self.config.decoder_attention:
                x = block(x, pooled)
            else:
                x = block(x, None if self.gains is None else self.gains[stage][index](*seen))  # type: ignore[index]
        return x

    def statistics_size(self) -> int:
        """How many pooled statistics a picture has: S of :class:`clusir.network.pooled.PooledStatistics`."""
        # Sizes of statistics do not depend on the picture's; DegradationTraces and the filters need 16 px of it.
        pooled, side = PooledStatistics(), max(16, self.config.size_multiple)
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
