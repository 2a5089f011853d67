"""What training minimises: restoration losses, and the losses that make the router's clusters mean something.

All are functions of the model, its output and the batch; the network itself keeps no loss. No function here sees the
name of a degradation: which samples share a draw of degradation is all that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "agreement_loss",
    "balance_loss",
    "cluster_loss",
    "log_error",
    "orthogonality_loss",
    "partner_joint",
    "spectrum_error",
]

# Mean squared error at which the logarithm is bent: 47 dB. What is better cannot be seen in an 8-bit picture, and must
# not drive the training.
_FLOOR = 2e-5
_TYPICAL = 0.05  # 26 dB: an error of this size gets the same gradient at every power


def _bent(error: Tensor, power: float) -> Tensor:
    """mean_b of the antiderivative of (0.05 / error_b) ** power / 0.05 that is log(0.05) at 0.05: B positive numbers.

    A Box-Cox transform (Box and Cox, 1964): power 0 is linear in the error, power 1 its logarithm.
    """
    if power == 1:
        return torch.log(error).mean()
    rest = 1.0 - power
    return (((error / _TYPICAL) ** rest - 1.0) / rest).mean() + math.log(_TYPICAL)


def log_error(restored: Tensor, clean: Tensor, power: float = 1.0) -> Tensor:
    """mean_b of log(RMSE_b + floor), in nepers (1 is 8.7 dB): minus the mean PSNR, up to a constant. Bx3xHxW in 0..1.

    The PSNR loss of HINet (arXiv 2105.06086): every picture weighs alike in the dB in which all are judged. ``power``
    in 0..1 bends it: the gradient is divided by (the picture's own error) ** power, so that 0 is the plain RMSE, which
    learns haze and low light first, whose errors are ten times those of JPEG.
    """
    return _bent(((restored - clean).square().flatten(1).mean(1) + _FLOOR).sqrt(), power)


def spectrum_error(restored: Tensor, clean: Tensor, power: float = 1.0) -> Tensor:
    """mean_b of log(L1_b + floor) over real and imaginary parts of the orthonormal rfft2 of the error (MoCE-IR's FFT
    loss); ``power`` as in :func:`log_error`."""
    spectrum = torch.view_as_real(torch.fft.rfft2((restored - clean).float(), norm="ortho"))
    return _bent(spectrum.abs().flatten(1).mean(1) + _FLOOR**0.5, power)


def orthogonality_loss(prototypes: Sequence[Tensor]) -> Tensor:
    """Mean squared cosine between different prototypes, mean over levels; ``prototypes``: LxD with unit rows each.

    Where L > D rows cannot be orthogonal: only cosines beyond 0.2 count.
    """
    terms = []
    for bank in prototypes:
        clusters, dim = bank.shape
        cosine = bank @ bank.t()
        cosine = cosine - torch.diag(cosine.diagonal())
        if clusters > dim:
            cosine = F.relu(cosine.abs() - 0.2)
        terms.append(cosine.square().sum() / max(clusters * (clusters - 1), 1))
    return torch.stack(terms).mean()


def balance_loss(probabilities: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Keeps every expert in use: half the squared coefficient of variation of importance, half the Switch loss - 1.

    ``probabilities``: BxE per level, before top-k; ``gates``: BxE after it. Importance is the batch sum of
    probabilities (Shazeer et al. 2017); E * sum_e share_e * mean_b p_e, with share_e the fraction of samples sent to
    e, is Switch Transformer's (Fedus et al. 2021). Both are 0 at balance.
    """
    terms = []
    for probability, gate in zip(probabilities, gates, strict=True):
        importance = probability.mean(0)
        variation = (importance / importance.mean().clamp_min(1e-6) - 1).square().mean()
        chosen = (gate > 0).float().mean(0).detach()
        switch = probability.shape[1] * (chosen / chosen.sum().clamp_min(1e-6) * importance).sum() - 1
        terms.append(0.5 * variation + 0.5 * switch)
    return torch.stack(terms).mean()


def cluster_loss(posteriors: Sequence[Tensor], running: Sequence[Tensor], memory: float = 0.5) -> Tensor:
    """mean_b H(pi_b) - H(mean pi), mean over levels, in nats: sure about each picture, all clusters used.

    ``posteriors``: BxL per level. A batch is too small to estimate the mean posterior, so ``running`` (L per level,
    summing to 1) joins it with weight ``memory``.
    """
    terms = []
    for posterior, past in zip(posteriors, running, strict=True):
        mean = memory * past + (1 - memory) * posterior.mean(0)
        terms.append(_entropy(posterior).mean() - _entropy(mean))
    return torch.stack(terms).mean()


def partner_joint(posterior: Tensor, recipe: Tensor, photo: Tensor) -> Tensor | None:
    """The joint cluster distribution LxL of partners: different photos with the same degradation; symmetric, sums to 1.

    ``posterior``: BxL; ``recipe``, ``photo``: B integers, best on the CPU, where counting waits for no GPU. None where
    the batch holds no partners.
    """
    partner = ((recipe[:, None] == recipe[None, :]) & (photo[:, None] != photo[None, :])).float()
    count = float(partner.sum())
    return posterior.t() @ partner.to(posterior.device) @ posterior / count if count > 0 else None


def agreement_loss(
    posteriors: Sequence[Tensor], joints: Sequence[Tensor], recipe: Tensor, photo: Tensor, memory: float = 0.8
) -> Tensor:
    """Different photos with the same degradation agree; the same photo with other degradation does not. Mean over
    levels.

    The first half is minus the mutual information, in nats, between the clusters of partners (IIC, Ji et al. 2019):
    it is largest where partners agree, surely, and all clusters are used. Merely pulling partners together has a
    trivial solution, one cluster for all, into which a training falls within a hundred steps [measured]; mutual
    information is zero there. The second half is -log(1 - <pi_i, pi_j>) over pairs that share the photo and not the
    degradation.

    ``joints``: the running joint distribution LxL per level. It joins the batch's with weight ``memory`` where the
    information's gradient is taken, because a batch alone has too few pairs to estimate a table of LxL.
    """
    repel = ((photo[:, None] == photo[None, :]) & (recipe[:, None] != recipe[None, :])).float()
    repel = repel.to(posteriors[0].device)
    terms = []
    for posterior, past in zip(posteriors, joints, strict=True):
        joint = partner_joint(posterior, recipe, photo)
        together = (posterior @ posterior.t()).clamp(max=1 - 1e-3)
        term = -(repel * torch.log1p(-together)).sum() / repel.sum().clamp_min(1)
        if joint is not None:
            mean = (memory * past + (1 - memory) * joint.detach()).clamp_min(1e-6)
            pointwise = mean.log() - mean.sum(1, keepdim=True).log() - mean.sum(0, keepdim=True).log()
            # d MI / d P_ij is the pointwise information, up to a constant that a distribution does not feel.
            term = term - (joint * pointwise).sum()
        terms.append(term)
    return torch.stack(terms).mean()


def _entropy(probability: Tensor) -> Tensor:
    return -(probability * probability.clamp_min(1e-8).log()).sum(-1)
