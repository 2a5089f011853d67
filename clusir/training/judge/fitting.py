"""Fit a small head on what was measured of pictures once: the way that trust and exposure share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fit", "fit_head"]

_LEAST_SPREAD = 1e-3  # a statistic that hardly varies is not blown up


class _Head(Protocol):
    """A head of ``read``, linear layers with ReLU behind each, and the layer ``say``."""

    read: nn.Sequential
    say: nn.Linear


@dataclass(frozen=True)
class Fit:
    """AdamW with a rate that falls to 0. ``jitter``: noise on the statistics, in units of their spread; ``dropped``:
    the share of hidden units that a step does without; ``bias``: what the head says at the start of everything."""

    steps: int
    jitter: float
    dropped: float
    bias: float = 0.0
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-2


def fit_head(head: _Head, known: Tensor, loss: Callable[[Tensor, Tensor], Tensor], fit: Fit) -> None:
    """Fit ``head`` on N pictures of which ``known``, NxK, is what it reads. ``loss``: the numbers of the pictures in a
    batch, B integers, and what the head says of them, BxM, to one number."""
    enter = head.read[0]
    assert isinstance(enter, nn.Linear)
    mean, spread = known.mean(0), known.std(0).clamp_min(_LEAST_SPREAD)
    for layer in head.read:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    seen = (known - mean) / spread
    with torch.no_grad():
        head.say.weight.zero_()
        head.say.bias.fill_(fit.bias)
    parameters = [*head.read.parameters(), *head.say.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=fit.rate, weight_decay=fit.decay)
    for step in range(fit.steps):
        for group in optimizer.param_groups:
            group["lr"] = fit.rate * (1 - step / fit.steps)
        rows = torch.randint(0, len(known), (min(fit.batch, len(known)),))
        hidden = seen[rows] + fit.jitter * torch.randn(len(rows), seen.shape[1])
        for layer in head.read:
            hidden = F.dropout(layer(hidden), fit.dropped) if isinstance(layer, nn.ReLU) else layer(hidden)
        optimizer.zero_grad()
        torch.autograd.backward(loss(rows, head.say(hidden)))
        optimizer.step()
    with torch.no_grad():  # learnt in units of their spread, read as they are
        enter.weight.div_(spread)
        enter.bias.sub_(enter.weight @ mean)
