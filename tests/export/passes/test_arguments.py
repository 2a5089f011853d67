"""Passes leave the model that they are given as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from clusir.export.base import Pass
from clusir.export.experts.join import JoinGates
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph
from clusir.export.trace.writer import write_onnx
from clusir.spec import ModelSpec

SPEC = ModelSpec()


class Network(nn.Module):
    """Convolutions, an upsampling, GELU, a mean over channels and a spectrum: what the passes look for."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.expand = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1, bias=False)
        self.deep = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(2))
        self.gain = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.gelu(self.enter(image))
        x = torch.cat([layer(part) for layer, part in zip(self.deep, x.chunk(2, dim=1), strict=True)], dim=1)
        x = torch.fft.irfft2(torch.fft.rfft2(x) * self.gain, s=x.shape[-2:])
        up = nn.functional.pixel_shuffle(self.expand(x), 2)
        small = nn.functional.interpolate(up, scale_factor=0.5, mode="bilinear")
        return image + small, x.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def written() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = write_onnx(
        Network().eval(), (torch.rand(2, 3, 16, 16),), ["image"], ["restored", "gate_0"], dynamic_size=False
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    return model


PASSES: list[Pass[onnx.ModelProto]] = [
    SimplifyGraph(), *fusing_passes(), CheckStandard(), JoinGates(["gate_0"]), AttachMetadata(SPEC),
]  # fmt: skip


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_the_argument_stays_what_it_was(written: onnx.ModelProto, step: Pass[onnx.ModelProto]) -> None:
    given = onnx.ModelProto()
    given.CopyFrom(written)
    before = given.SerializeToString(deterministic=True)
    result = step.apply(given)
    assert given.SerializeToString(deterministic=True) == before
    if result.model is given:
        assert not result.modified


def test_metadata_of_others_stays_and_the_exporters_notes_go(written: onnx.ModelProto) -> None:
    properties = {p.key: p.value for p in AttachMetadata(SPEC).apply(written).model.metadata_props}
    assert properties == SPEC.to_metadata() | {"author": "somebody"}
    simplified = SimplifyGraph().apply(written).model
    assert {p.key: p.value for p in AttachMetadata(SPEC).apply(simplified).model.metadata_props} == properties
    again = AttachMetadata(ModelSpec(name="other")).apply(AttachMetadata(SPEC).apply(written).model).model
    assert {p.key: p.value for p in again.metadata_props}["clusir.name"] == '"other"'


def test_gates_are_joined_in_the_order_of_the_calls() -> None:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 2]) for n in ("image", "restored")]
    gates = [helper.make_tensor_value_info(f"gate_{i}", TensorProto.FLOAT, ["b", 2]) for i in range(2)]
    gates.append(helper.make_tensor_value_info("gate_2", TensorProto.FLOAT, ["b", 2, "h", "w"]))
    nodes = [
        helper.make_node("Identity", ["image"], ["restored"]),
        helper.make_node("Identity", ["image"], ["gate_0"]),
        helper.make_node("Neg", ["image"], ["gate_1"]),
        helper.make_node("Reshape", ["image", "shape"], ["gate_2"]),
    ]
    constants = [numpy_helper.from_array(np.array([-1, 2, 1, 1]), "shape")]
    graph = helper.make_graph(nodes, "g", ports[:1], [ports[1], *gates], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    joined = JoinGates(["gate_0", "gate_1", "gate_2"]).apply(model).model
    assert [o.name for o in joined.graph.output] == ["restored", "gate"]
    assert joined.graph.output[1].type.tensor_type.shape.dim[1].dim_value == 4
    assert list(joined.graph.node[-1].input) == ["gate_0", "gate_1"]
