"""Start the routers where degradation shows: a linear discriminant instead of a random projection.

The pooled features of an untrained network differ mostly by picture (brightness, texture), and all share a large
constant part: the normalised descriptors then point the same way, every picture falls into one cluster, and the
losses sit on a saddle. What is wanted are the directions in which different photos with the same degradation agree.
They are the eigenvectors of T^-1 C, with T the covariance of pooled features and C the covariance between partners that
share a recipe and not a photo (a canonical correlation analysis of a batch with itself). No label is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clusir.network.model import ClusIR
from clusir.network.router import TRACE_PACE, ClusterRouter
from clusir.training.data import Batch

__all__ = ["CALIBRATED", "calibrate_routers", "discriminant"]

CALIBRATED = ("project.weight", "project.bias", "see.weight")
"""The parameters of a router that :func:`calibrate_routers` sets."""

_RIDGE = 1e-3


def discriminant(pooled: Tensor, recipe: Tensor, photo: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` directions of NxD features that partners agree on best: (V Dxcount, mean D); V^T T V = identity.

    ``recipe`` and ``photo``: N integers; partners share the first and not the second.
    """
    x = pooled.double()
    mean = x.mean(0)
    x = x - mean
    total = x.t() @ x / len(x)
    # A ridge in each feature's own unit: statistics of the picture are a hundred times as large as pooled features.
    total = total + torch.diag((_RIDGE * total.diagonal()).clamp_min(1e-12))
    partner = ((recipe[:, None] == recipe[None, :]) & (photo[:, None] != photo[None, :])).double()
    shared = x.t() @ partner @ x / partner.sum().clamp_min(1)
    # With T = U S U^T, W = U S^-1/2 whitens; in white coordinates the generalised problem is an ordinary one.
    values, vectors = torch.linalg.eigh(total)
    whiten = vectors * values.rsqrt()
    _, directions = torch.linalg.eigh(whiten.t() @ shared @ whiten)
    return (whiten @ directions.flip(1)[:, :count]).float(), mean.float()


@torch.no_grad()
def calibrate_routers(model: ClusIR, batches: Iterable[Batch]) -> list[nn.Parameter]:
    """Set every router's projections so that its descriptor spans the best directions, one per prototype.

    ``batches`` must hold pairs that share a recipe (quads); some 300 samples are enough. Only ``project`` and, where
    the network has :class:`clusir.network.traces.DegradationTraces`, ``see`` change. Returns the parameters that
    changed.
    """
    routers = [m for m in model.modules() if isinstance(m, ClusterRouter)]
    watched: list[nn.Module] = [part for r in routers for part in (r.project, r.see) if part is not None]
    inputs: dict[nn.Module, list[Tensor]] = {part: [] for part in watched}
    handles = [
        part.register_forward_pre_hook(lambda module, args, held=held: held.append(args[0].cpu()))
        for part, held in inputs.items()
    ]
    mode, device = model.training, next(model.parameters()).device
    model.eval()
    recipes, photos, offset = [], [], 0
    try:
        for batch in batches:
            model(batch.degraded.to(device))
            recipes.append(batch.recipe + offset)
            photos.append(batch.photo + offset)
            offset += 2 * len(batch.names)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    for router in routers:
        seen = torch.cat(inputs[router.project])
        width = seen.shape[1]
        if router.see is not None:
            seen = torch.cat((seen, torch.cat(inputs[router.see])), dim=1)
        bank = router.unit_prototypes()
        directions, mean = discriminant(seen, torch.cat(recipes), torch.cat(photos), bank.shape[0])
        # The descriptor becomes sum_k y_k P_k: its cosine with prototype k is the k-th discriminant, normalised.
        weight = bank.t()[:, : directions.shape[1]] @ directions.t().to(device)
        router.project.weight.copy_(weight[:, :width])
        router.project.bias.copy_(-(weight @ mean.to(device)))
        if router.see is not None:
            router.see.weight.copy_(weight[:, width:] / TRACE_PACE)
    return [p for router in routers for name, p in router.named_parameters() if name in CALIBRATED]
