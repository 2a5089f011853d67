"""What the benchmark page runs: its networks, and the graphs that the plain exporter and this package write of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from clusir.export.base import Pass, Pipeline
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import quiet_exporter
from tests.bench.pages.networks import (
    ChannelNormStandIn,
    MoEStandIn,
    PatchFFTStandIn,
    WholeMapFFTStandIn,
    describe_stand_ins,
)

__all__ = [
    "FAMILY",
    "NETWORKS",
    "STAND_INS",
    "densified",
    "fused",
    "lowered_graph",
    "network",
    "our_graph",
    "picture",
    "plain_graph",
    "routed",
]

FAMILY = ("tiny", "small-shallow", "small")
_WRITTEN = {
    "whole-map-fft": WholeMapFFTStandIn,
    "patch-fft": PatchFFTStandIn,
    "top-k-moe": MoEStandIn,
    "channel-norm": ChannelNormStandIn,
}
STAND_INS = tuple(_WRITTEN)
NETWORKS = (*FAMILY, *STAND_INS)


class _Picture(nn.Module):
    """A network of the family answers with a tuple; the page compares the picture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.model(image).restored
        return out


def network(name: str) -> nn.Module:
    """An untrained network of the page, in eval mode, image -> picture. ``small-shallow`` has every part of ``small``
    and one block where that has two to eight: the same ratios, minutes less to export."""
    torch.manual_seed(0)
    if name in FAMILY:
        from clusir.network.checkpoint import random_model
        from clusir.network.model import CONFIGS

        config = CONFIGS[name.removesuffix("-shallow")]
        if name == "small-shallow":
            once = (1,) * config.levels
            config = replace(config, blocks=once, decoder_blocks=once[1:], refine_blocks=1)
        return _Picture(random_model(config)).eval()
    return _WRITTEN[name]().eval()


def picture(size: int) -> Tensor:
    """The page's input, [1, 3, size, size], uniform in 0..1 and the same every time."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def densified(name: str, model: nn.Module) -> nn.Module:
    """The network with its routed experts evaluated densely (the same object where it has none)."""
    from clusir.export.experts.dense import DensifyExperts
    from clusir.export.experts.registry import DensifyRegistered

    describe_stand_ins()
    step: Any = DensifyExperts() if name in FAMILY else DensifyRegistered()
    dense: nn.Module = step.apply(model).model
    return dense


def routed(name: str) -> bool:
    """Whether a network of the page has routed experts, so that a dense form of it differs."""
    return name in FAMILY or name == "top-k-moe"


def plain_graph(model: nn.Module, image: Tensor) -> bytes:
    """What ``torch.onnx.export(dynamo=True)`` writes with nothing else said. Raises what it raises."""
    with quiet_exporter():
        program = torch.onnx.export(model, (image,), dynamo=True, input_names=["image"], verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def lowered_graph(name: str, dense: nn.Module, image: Tensor) -> onnx.ModelProto:
    """The densified network through our lowering and constant folding, before the graph passes, at the image's
    size."""
    lowered = _family_graph(dense, image) if name in FAMILY else _brought_graph(dense, image)
    return Pipeline([SimplifyGraph()]).run(lowered)


def fused(lowered: onnx.ModelProto, passes: Sequence[Pass[onnx.ModelProto]] | None = None) -> onnx.ModelProto:
    """A lowered graph behind the graph passes, or behind those given."""
    result: onnx.ModelProto = Pipeline(fusing_passes() if passes is None else passes).run(lowered)
    return result


def our_graph(name: str, dense: nn.Module, image: Tensor) -> bytes:
    """What this package writes of the densified network, at the image's size."""
    return fused(lowered_graph(name, dense, image)).SerializeToString()


def _family_graph(dense: nn.Module, image: Tensor) -> onnx.ModelProto:
    """The static export that ``clusir-export`` writes."""
    from clusir.export.trace.writer import write_onnx

    example = (torch.rand(2, *image.shape[1:]),)
    return write_onnx(dense, example, ["image"], ["restored"], dynamic_size=False, dft="auto")


def _brought_graph(dense: nn.Module, image: Tensor) -> onnx.ModelProto:
    """The export of a brought model, its dynamic axes fixed to the image's size."""
    from clusir.export.trace.program import trace_module
    from clusir.export.trace.writer import write_program

    model, _ = write_program(trace_module(dense, torch.rand(2, *image.shape[1:])), "auto")
    del model.graph.output[1:]  # the gates, which a described block also gives
    for axis, size in enumerate(image.shape):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    return model
