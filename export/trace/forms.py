"""The three graphs that a ClusIR network is exported as, each an nn.Module with plain tensors in and out.

The whole graph answers alone. Where a picture is cut into tiles, the router graph runs first on a few of them together,
and the tile graph then restores every tile under that one routing and with those statistics
(``clusir.runtimes.restore.routing``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clusir.network.evidence import FAMILY_COUNT
from clusir.network.model import ClusIR
from clusir.network.pooled import PooledStatistics

__all__ = ["GRAPHS", "GraphForm", "RouterGraph", "TileGraph", "WholeGraph"]


class WholeGraph(nn.Module):
    """image Bx3xHxW -> restored (the same shape), posterior BxsumL, gate BxsumE and, of a network with permissions,
    evidence BxF: it mends what it may unasked."""

    def __init__(self, model: ClusIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        done = self.model(image)
        outputs = (done.restored, torch.cat(done.posteriors, dim=1), torch.cat(done.gates, dim=1))
        return outputs if done.evidence is None else (*outputs, done.evidence)


class TileGraph(nn.Module):
    """image Bx3xHxW, posterior BxsumL, gate BxsumE, statistics BxS -> restored: all that is pooled over the picture is
    given."""

    def __init__(self, model: ClusIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, posterior: Tensor, gate: Tensor, statistics: Tensor) -> Tensor:
        config = self.model.config
        posteriors = torch.split(posterior, list(config.clusters), dim=1)
        gates = torch.split(gate, [config.experts] * config.levels, dim=1)
        routing = tuple(zip(posteriors, gates, strict=True))
        restored: Tensor = self.model(image, routing, PooledStatistics(statistics)).restored
        return restored


class RouterGraph(nn.Module):
    """image Nx3xHxW -> posterior 1xsumL, expert_probability 1xsumE (before top-k), statistics 1xS; of a network with
    permissions, image and permissions 1xF -> these and evidence 1xF.

    The batch are samples of one picture, and what is said is said of all of them together. Of a network without
    attention in the decoder only the encoder remains.
    """

    def __init__(self, model: ClusIR) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, permissions: Tensor | None = None) -> tuple[Tensor, ...]:
        pooled = PooledStatistics(together=True)
        done = self.model(image, None, pooled, permissions)
        posterior, probability = torch.cat(done.posteriors, dim=1), torch.cat(done.expert_probabilities, dim=1)
        outputs = (posterior, probability, pooled.recorded())
        return outputs if done.evidence is None else (*outputs, done.evidence)


@dataclass(frozen=True)
class GraphForm:
    """Which module stands for a graph, and what its tensors are called in the file; networks with permissions have
    more of them."""

    name: str
    module: type[nn.Module]
    plain_inputs: tuple[str, ...]
    plain_outputs: tuple[str, ...]
    suffix: str

    def inputs(self, model: ClusIR) -> tuple[str, ...]:
        told = model.config.permissions and self.name == "router"
        return (*self.plain_inputs, "permissions") if told else self.plain_inputs

    def outputs(self, model: ClusIR) -> tuple[str, ...]:
        tells = model.config.permissions and self.name != "tile"
        return (*self.plain_outputs, "evidence") if tells else self.plain_outputs

    def build(self, model: ClusIR) -> nn.Module:
        return self.module(model).eval()

    def example(self, model: ClusIR, size: int) -> tuple[Tensor, ...]:
        """Inputs to trace with: a batch of 2, because tracers take 0 and 1 for constants."""
        config = model.config
        image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        if self.name == "router" and config.permissions:
            return image, torch.full((1, FAMILY_COUNT), 0.5)
        if self.name != "tile":
            return (image,)
        posterior = torch.cat([torch.full((2, n), 1.0 / n) for n in config.clusters], dim=1)
        gate = torch.eye(config.experts)[:2].repeat(1, config.levels)
        return image, posterior, gate, torch.full((2, model.statistics_size()), 0.5)


GRAPHS: dict[str, GraphForm] = {
    form.name: form
    for form in (
        GraphForm("whole", WholeGraph, ("image",), ("restored", "posterior", "gate"), ".onnx"),
        GraphForm("tile", TileGraph, ("image", "posterior", "gate", "statistics"), ("restored",), ".tile.onnx"),
        GraphForm("router", RouterGraph, ("image",), ("posterior", "expert_probability", "statistics"), ".router.onnx"),
    )
}
