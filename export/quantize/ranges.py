"""Activation ranges: what a calibration holds, and whose maps are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clusir.export.graph.session import Array, Feeds
from clusir.export.quantize.layers import Graph, Layer

__all__ = ["Calibration", "Owners", "TensorRange", "owners_of"]

Owners = dict[str, tuple[int, int]]


@dataclass
class TensorRange:
    """What one tensor spans: ``low`` <= 0 <= ``high``, and the mean of each channel (for bias correction)."""

    low: float = 0.0
    high: float = 0.0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Calibration:
    """Inputs of one graph: ``feeds`` per crop, the crops' keys for messages, gates N x sum of experts (or N x 0)."""

    feeds: Sequence[Feeds]
    keys: Sequence[str]
    gates: Array
    experts: tuple[int, ...] = ()

    def serves(self, crop: int, owner: tuple[int, int] | None) -> bool:
        """Whether a crop counts for a tensor of ``owner``."""
        if owner is None or not self.experts or owner[1] < 0:
            return True
        return bool(self.gates[crop, sum(self.experts[: owner[0]]) + owner[1]] != 0)


def owners_of(graph: Graph, layers: Sequence[Layer]) -> Owners:
    """Tensors that belong to one expert alone: outputs of its layers, and whatever is computed from those only."""
    by_node = {layer.node: layer.expert for layer in layers if layer.expert is not None and layer.expert[1] >= 0}
    owners: Owners = {}
    for node in graph.model.graph.node:
        owner = by_node.get(node.name)
        if owner is None:
            varying = {name for name in node.input if name and name not in graph.initialisers}
            varying -= {n for n in varying if n in graph.producer and graph.producer[n].op_type == "Constant"}
            found = {owners.get(name) for name in varying}
            owner = found.pop() if len(found) == 1 else None
        if owner is not None:
            owners.update(dict.fromkeys(node.output, owner))
    return owners
