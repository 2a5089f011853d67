"""One routing for a whole picture, shared by its tiles. C++ and JavaScript do the same.

The router graph looks at a regular sample of at most nine tiles; their posteriors and expert probabilities are
averaged; top-k of the average is the gate that every tile gets. Neighbouring tiles never run different experts then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clusir.runtimes.base import Array
from clusir.spec import ModelSpec

__all__ = ["Routing", "combine", "split_levels", "top_k_gate"]


@dataclass(frozen=True)
class Routing:
    """What the model recognised and which experts run: ``posterior`` [sum of clusters] and ``gate`` [sum of experts],
    all levels concatenated, float32. ``shared`` says whether every tile got this routing; otherwise each tile chose its
    own and these are the averages."""

    posterior: Array
    gate: Array
    shared: bool


def combine(posterior: Array, expert_probability: Array, spec: ModelSpec) -> Routing:
    """The shared routing from the router's outputs [samples, ...] (float32)."""
    mean_probability = expert_probability.mean(axis=0, dtype=np.float64).astype(np.float32)
    gates = [top_k_gate(p, spec.top_k) for p in split_levels(mean_probability, spec.experts)]
    mean_posterior = posterior.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Routing(mean_posterior, np.concatenate(gates), shared=True)


def top_k_gate(probability: Array, k: int) -> Array:
    """The gate of one level: the ``k`` largest of ``probability`` [E], ties to the lowest index, zero elsewhere.

    k = 1 keeps the raw probability, k > 1 renormalises over the chosen, as in ``clusir.router``.
    """
    chosen = np.argsort(-probability, kind="stable")[:k]
    gate = np.zeros_like(probability)
    gate[chosen] = probability[chosen]
    return gate if k == 1 else gate / gate.sum()


def split_levels(values: Array, lengths: tuple[int, ...]) -> list[Array]:
    """The concatenated ``values`` as one array per level."""
    return np.split(values, np.cumsum(lengths)[:-1])
