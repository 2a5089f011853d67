"""PixelMajor: where it transposes, what it leaves alone, and numbers that stay the same to the bit of a doubling."""

from __future__ import annotations

import onnx
import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import accept, exported, kinds, refuse
from onnx import numpy_helper
from torch import Tensor, nn

from clusir.export.passes.pixel_major import PixelMajor
from clusir.runtimes.runners.quiet import import_openvino
from tests import needs

openvino = import_openvino()  # imported plainly, it would report that


class Mixed(nn.Module):
    """A convolution's map, its channels mixed by a matrix that depends on the picture: only products read it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = F.relu(self.enter(x)).reshape(x.shape[0], -1, 144)
        mixed = torch.matmul(torch.softmax(torch.matmul(flat, flat.transpose(1, 2)), -1), flat)
        return self.leave(mixed.reshape(x.shape[0], -1, 12, 12))


class Filtered(nn.Module):
    """A map filtered along its rows by a constant matrix, beside itself: a residual sum reads it too."""

    def __init__(self, size: int = 12, constant: bool = True) -> None:
        super().__init__()
        self.enter, self.leave, self.constant = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), constant
        self.size = size
        self.register_buffer("matrix", torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        matrix = self.matrix if self.constant else self.matrix * x.mean()
        rows = torch.matmul(u.reshape(x.shape[0], 4, 4, self.size, self.size), matrix)
        return u + self.leave(torch.relu(rows).reshape(x.shape[0], 16, self.size, self.size))


def doubled(model: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in model.graph.node if n.output[0].endswith("/doubled")]


@pytest.mark.parametrize("batch", [False, True], ids=["batch 2", "any batch"])
def test_a_map_that_only_products_read_is_transposed_once(batch: bool) -> None:
    model = accept(PixelMajor(), Mixed(), (2, 3, 12, 12), batch=batch)
    orders = [list(a.ints) for n in model.graph.node if n.op_type == "Transpose" for a in n.attribute]
    assert orders.count([0, 2, 3, 1]) == 1
    assert not doubled(model)


@pytest.mark.parametrize("batch", [False, True], ids=["batch 2", "any batch"])
def test_a_map_that_others_read_is_doubled_and_its_matrix_halved(batch: bool) -> None:
    module = Filtered()
    model = accept(PixelMajor(), module, (2, 3, 12, 12), batch=batch)
    assert len(doubled(model)) == 1
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    product = next(n for n in model.graph.node if n.op_type == "MatMul")
    assert (constants[product.input[1]] == module.matrix.numpy() / 2).all()


def test_openvino_then_has_no_slow_reorder() -> None:
    """The reason of the pass: channels last to channels first, 16 to 64 channels, only on the way to the output."""
    module, shape = Mixed(48), (1, 3, 12, 12)
    before = exported(module, shape, simple=True)
    after = PixelMajor().apply(before).model

    def reorders(model: onnx.ModelProto) -> list[str]:
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(model.SerializeToString(), b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return [
            name
            for op in compiled.get_runtime_model().get_ops()
            if "acdb_abcd" in (name := op.get_friendly_name()) and tuple(op.get_output_shape(0)) == (1, 48, 12, 12)
        ]

    if not reorders(before):
        needs.skip("pixel-major")
    assert not reorders(after)


def test_what_stays() -> None:
    nothing = "no product reads a convolution's map"
    refuse(PixelMajor(), Mixed(8), (1, 3, 12, 12), nothing)  # OpenVINO has a fast kernel for few and for many channels
    refuse(PixelMajor(), Mixed(80), (1, 3, 12, 12), nothing)
    refuse(PixelMajor(), Filtered(8), (1, 3, 8, 8), nothing)  # and for few pixels
    refuse(PixelMajor(), Filtered(constant=False), (1, 3, 12, 12), nothing)  # nowhere to put the 1/2
    for made in (torch.clone, torch.sin):  # no convolution made it, so it has the channels first already
        refuse(
            PixelMajor(),
            lambda x, made=made: torch.matmul(made(x).reshape(2, 16, -1), x.new_ones(144, 4)),
            (2, 16, 12, 12),
            nothing,
        )


def test_pixel_shuffles_stay_as_runtimes_know_them() -> None:
    enter = nn.Conv2d(3, 16, 1)

    def shuffled(x: Tensor) -> Tensor:
        u = enter(x).reshape(2, 4, 4, 12, 12).transpose(1, 2).reshape(2, 16, 12, 12)
        return torch.relu(u)

    refuse(PixelMajor(), shuffled, (2, 3, 12, 12), "no product reads")
    assert "Reshape" in kinds(exported(shuffled, (2, 3, 12, 12), simple=True))
