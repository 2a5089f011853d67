"""PCGRM, the probabilistic cluster-guided routing mechanism: first which degradation, then which expert.

Stage 1 is the posterior over learned clusters, p(c|x); stage 2 the experts' probability given cluster and picture,
p(e|c,x); together, by total probability, p(e|x) = sum_c p(c|x) p(e|c,x), a mixture of softmaxes. The two stages and the
prototype bank per level are from the published description of ClusIR (arXiv 2512.10948); formulas are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.pooled import PooledStatistics, over_pixels

__all__ = ["TRACE_PACE", "ClusterRouter", "Routing", "top_k_gate"]

_TAU_MIN, _TAU_MAX, _TAU_START = 0.05, 1.0, 0.2
TRACE_PACE = 10.0  # as in clusir.network.cues: starts at nothing, and must not lag behind the features


class Routing(NamedTuple):
    """One level's routing: posterior BxL (sums to 1), expert_probability BxE (sums to 1), gate BxE (zero where not
    chosen), cue BxD (the expected prototype, which modulates prompts and frequency bands)."""

    posterior: Tensor
    expert_probability: Tensor
    gate: Tensor
    cue: Tensor


def top_k_gate(probability: Tensor, k: int) -> Tensor:
    """Keep each row's k largest of BxE; ties go to the lowest index, in every runtime.

    k = 1 keeps the raw probability (renormalising would give 1 and no gradient to the router); k > 1 renormalises over
    the chosen. Ranks are counted by comparison: TopK's order of ties differs between runtimes.
    """
    experts = probability.shape[-1]
    earlier = torch.ones(experts, experts, device=probability.device).tril(-1) > 0  # [e, j]: j < e
    mine, other = probability.unsqueeze(-1), probability.unsqueeze(-2)
    beaten = (other > mine) | ((other == mine) & earlier)
    chosen = (beaten.to(probability.dtype).sum(-1) < k).to(probability.dtype)
    gate = probability * chosen
    return gate if k == 1 else gate / gate.sum(-1, keepdim=True)


class ClusterRouter(nn.Module):
    """Both stages for one encoder level.

    A strided 3x3 convolution with ReLU stands before the global average pool [ours]: the average of a linear feature is
    the mean colour, which noise, blur and JPEG leave alone, while the average of a rectified one carries their energy.
    """

    def __init__(
        self, width: int, clusters: int, dim: int, experts: int, top_k: int, traces: int = 0, permissions: int = 0
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.describe = nn.Conv2d(width, dim, 3, stride=2, padding=1)
        self.project = nn.Linear(dim, dim)
        self.see = nn.Linear(traces, dim, bias=False) if traces else None
        if self.see is not None:
            nn.init.zeros_(self.see.weight)
        rows = torch.empty(max(clusters, dim), dim)
        self.prototypes = nn.Parameter(nn.init.orthogonal_(rows)[:clusters].clone())
        self.log_tau_cluster = nn.Parameter(torch.tensor(math.log(_TAU_START)))
        self.log_tau_expert = nn.Parameter(torch.zeros(()))
        self.transition = nn.Parameter(0.1 * torch.randn(clusters, experts))
        self.expert_image = nn.Parameter(0.1 * torch.randn(experts, dim))
        self.expert_joint = nn.Parameter(0.1 * torch.randn(experts, dim))
        # What a family that is not permitted takes from each cluster's log posterior; nothing where all are permitted.
        self.allow = nn.Linear(permissions, clusters, bias=False) if permissions else None
        if self.allow is not None:
            nn.init.zeros_(self.allow.weight)

    def unit_prototypes(self) -> Tensor:
        """The prototype bank LxD with unit rows."""
        return F.normalize(self.prototypes, dim=-1, eps=1e-6)

    def describe_picture(
        self, features: Tensor, traces: Tensor | None = None, pooled: PooledStatistics | None = None
    ) -> Tensor:
        """The unit descriptor BxD of features BxCxHxW; 1xD where ``pooled`` takes the batch together."""
        described = self.project(over_pixels(pooled, F.relu(self.describe(features))))
        if self.see is not None and traces is not None:
            described = described + TRACE_PACE * self.see(traces)
        return F.normalize(described, dim=-1, eps=1e-6)

    def forward(
        self,
        features: Tensor,
        traces: Tensor | None = None,
        pooled: PooledStatistics | None = None,
        permissions: Tensor | None = None,
    ) -> Routing:
        """``permissions`` BxF in 0..1 where the router was made for them."""
        descriptor = self.describe_picture(features, traces, pooled)
        prototypes = self.unit_prototypes()
        tau = self.log_tau_cluster.exp().clamp(_TAU_MIN, _TAU_MAX)
        likeness = descriptor @ prototypes.t() / tau
        if self.allow is not None and permissions is not None:
            likeness = likeness + TRACE_PACE * self.allow(permissions - 1)
        posterior = torch.softmax(likeness, dim=-1)

        # logit[b, c, e] = T[c, e] + <a_e, v_b> + <b_e, P_c * v_b>
        joint = (descriptor.unsqueeze(1) * prototypes) @ self.expert_joint.t()
        logits = self.transition + (descriptor @ self.expert_image.t()).unsqueeze(1) + joint
        if self.training:
            logits = logits + torch.randn_like(logits) / logits.shape[-1]
        tau = self.log_tau_expert.exp().clamp(_TAU_MIN, _TAU_MAX)
        probability = (posterior.unsqueeze(-1) * torch.softmax(logits / tau, dim=-1)).sum(1)
        return self.complete(posterior, probability, top_k_gate(probability, self.top_k))

    def complete(self, posterior: Tensor, probability: Tensor, gate: Tensor) -> Routing:
        """A Routing from given parts (for example those shared by all tiles of a picture): adds the cue."""
        return Routing(posterior, probability, gate, posterior @ self.unit_prototypes())
