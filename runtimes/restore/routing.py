"""One routing for a whole picture, shared by its tiles. C++ and JavaScript do the same.

The router graph looks at a regular sample of at most nine windows; their posteriors, expert probabilities and pooled
statistics are averaged; top-k of the average is the gate that every tile gets. Neighbouring tiles then never run
different experts, and what one computes from a mean over the picture the other computes from the same mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from clusir.errors import ClusirError
from clusir.runtimes.restore.pixels import check_finite
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["Routing", "combine", "router_outputs", "split_levels", "top_k_gate"]


@dataclass(frozen=True)
class Routing:
    """What the model recognised and which experts run: ``posterior`` [sum of clusters] and ``gate`` [sum of experts],
    all levels concatenated, float32. ``shared`` says whether every tile got this routing; otherwise each tile chose its
    own and these are the averages. ``statistics`` [S] are the shared pooled statistics (empty where the model's tiles
    compute their own), ``evidence`` [F] how likely each family of degradations is in the picture (empty where the model
    does not say). ``at_rest``: no family may be mended, so the picture comes back as it went in."""

    posterior: Array
    gate: Array
    shared: bool
    statistics: Array = field(default_factory=lambda: np.empty(0, np.float32))
    evidence: Array = field(default_factory=lambda: np.empty(0, np.float32))
    at_rest: bool = False

    def feeds(self, batch: int) -> dict[str, Array]:
        """The inputs of a tile graph beside the picture, for ``batch`` tiles."""
        given = {"posterior": self.posterior, "gate": self.gate}
        if len(self.statistics):
            given["statistics"] = self.statistics
        return {name: np.repeat(values[None], batch, axis=0) for name, values in given.items()}


def router_outputs(spec: ModelSpec) -> tuple[str, ...]:
    """The outputs of a router graph: what :func:`combine` averages."""
    names: tuple[str, ...] = ("posterior", "expert_probability")
    names = (*names, "statistics") if spec.statistics else names
    return (*names, "evidence") if spec.families else names


def combine(sampled: Mapping[str, Array], spec: ModelSpec) -> Routing:
    """The shared routing from the router's outputs, each [samples, ...] float32; ``spec`` is the router's.

    Raises ClusirError where an output holds NaN or infinity, or a probability below 0.
    """
    for name in router_outputs(spec):
        check_finite(sampled[name], f"the router's {name}")
    mean = {name: sampled[name].mean(axis=0, dtype=np.float64).astype(np.float32) for name in router_outputs(spec)}
    gates = [top_k_gate(p, spec.top_k) for p in split_levels(mean["expert_probability"], spec.experts)]
    routing = Routing(mean["posterior"], np.concatenate(gates), shared=True)
    more = {name: mean[name] for name in ("statistics", "evidence") if name in mean}
    return replace(routing, **more)


def top_k_gate(probability: Array, k: int) -> Array:
    """The gate of one level: the ``k`` largest of ``probability`` [E], ties to the lowest index, zero elsewhere.

    k = 1 keeps the raw probability, k > 1 renormalises over the chosen, as in ``clusir.network.router``; where all of
    them are 0 the gate is 0. Raises ClusirError for NaN, infinity and numbers below 0.
    """
    if not (np.isfinite(probability) & (probability >= 0)).all():
        raise ClusirError("the router returned a probability that is NaN, infinite or negative; its file is damaged")
    chosen = np.argsort(-probability, kind="stable")[:k]
    gate = np.zeros_like(probability)
    gate[chosen] = probability[chosen]
    total = gate.sum(dtype=np.float64)
    return gate if k == 1 or total == 0 else (gate / total).astype(np.float32)


def split_levels(values: Array, lengths: tuple[int, ...]) -> list[Array]:
    """The concatenated ``values`` as one array per level."""
    return np.split(values, np.cumsum(lengths)[:-1])
