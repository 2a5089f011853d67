"""Passes on what stands between the convolutions: interpolation, activations, narrow depthwise convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import accept, kinds, refuse
from onnx import numpy_helper
from small_graphs import Net
from small_graphs import same as unchanged
from torch import Tensor, nn

from clusir.export.graph.probe import LinearGraph, Region, Run
from clusir.export.passes.fuse_haar import FuseHaar
from clusir.export.passes.fuse_resize import FuseResize
from clusir.export.passes.order_gelu import OrderGelu
from clusir.export.passes.pair_depthwise import PairDepthwise
from clusir.network.cues import ToneMap
from clusir.network.wavelet import haar_forward, haar_inverse


class Toned(nn.Module):
    """The tone map of a picture, its coefficients from the picture's own shrunk features."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink, self.tone = nn.Conv2d(3, 4, 8, stride=8), ToneMap(4)
        nn.init.normal_(self.tone.coefficients.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.tone(self.shrink(x), x)


def test_tone_map_is_products_with_the_one_inside() -> None:
    model = accept(FuseResize(), Toned(), (2, 3, 32, 48), batch=True)
    assert "Resize" not in kinds(model)
    full = [n for n in model.graph.node if n.op_type in ("Add", "Mul") and not n.output[0].endswith("/gain")]
    assert len(full) == 2  # gain * image, + shift


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_is_two_products(mode: str) -> None:
    model = accept(FuseResize(), lambda x: F.interpolate(x, size=(13, 20), mode=mode), (2, 3, 5, 9), batch=True)
    assert set(kinds(model)) == {"MatMul"}


def test_resize_refuses_large_maps_and_copies() -> None:
    refuse(FuseResize(), lambda x: F.interpolate(x, size=(128, 128), mode="bilinear"), (1, 2, 64, 64), "costs as much")
    refuse(FuseResize(), lambda x: F.interpolate(x, scale_factor=2), (1, 2, 8, 8), "only copies")
    refuse(FuseResize(), lambda x: x * 2, (1, 2, 8, 8), "has no Resize")


class Experts(nn.Module):
    def __init__(self, widths: tuple[int, ...], kernels: tuple[int, ...], bias: bool = False) -> None:
        super().__init__()
        self.widths = list(widths)
        self.bodies = nn.ModuleList(
            nn.Conv2d(w, w, k, padding=k // 2, groups=w, bias=bias) for w, k in zip(widths, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.relu(x), self.widths, dim=1)
        return torch.relu(torch.cat([b(p) for b, p in zip(self.bodies, parts, strict=True)], 1))


@pytest.mark.parametrize("bias", [False, True])
def test_narrow_experts_go_in_pairs(bias: bool) -> None:
    model = accept(PairDepthwise(), Experts((8, 8, 8, 8), (3, 5, 7, 9), bias), (2, 32, 12, 13), batch=True)
    sizes = [t.dims for t in model.graph.initializer if len(t.dims) == 4]
    assert [list(s) for s in sizes] == [[16, 1, 5, 5], [16, 1, 9, 9]]


def test_unequal_experts_join_to_one() -> None:
    model = accept(PairDepthwise(), Experts((3, 5), (3, 7)), (2, 8, 9, 9), batch=True)
    assert kinds(model)["Conv"] == 1
    assert "Concat" not in kinds(model)


def test_full_blocks_stay() -> None:
    refuse(PairDepthwise(), Experts((16, 16), (3, 5)), (2, 32, 8, 8), "no Split - depthwise Conv - Concat")

    def reads_a_part(x: Tensor) -> Tensor:
        one, two = torch.split(torch.relu(x), [4, 4], dim=1)
        return torch.cat([F.avg_pool2d(one, 3, 1, 1), two], 1)

    refuse(PairDepthwise(), reads_a_part, (2, 8, 8, 8), "no Split - depthwise Conv - Concat")


def test_gelu_is_written_as_runtimes_know_it(tmp_path: Path) -> None:
    tail = nn.Sequential(nn.Conv2d(4, 16, 1), nn.GELU(), nn.Conv2d(16, 4, 1))
    model = accept(OrderGelu(), tail, (2, 4, 6, 6), batch=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = {n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Gelu" in found
    assert "Erf" not in found


def test_other_error_functions_stay() -> None:
    refuse(OrderGelu(), lambda x: x * (0.5 * (1 + torch.erf(x))), (1, 2, 4, 4), "no GELU")
    refuse(OrderGelu(), lambda x: x * (0.25 * (1 + torch.erf(x / 2**0.5))), (1, 2, 4, 4), "no GELU")


def test_inverse_haar_of_a_large_plane_is_a_transposed_convolution() -> None:
    def shrunk(x: Tensor) -> Tensor:
        low, high = haar_forward(x)
        return haar_inverse(torch.relu(low), torch.relu(high))

    model = accept(FuseHaar(), shrunk, (1, 2, 128, 128))
    assert "DepthToSpace" not in kinds(model)
    kernel = next(n.input[1] for n in model.graph.node if n.op_type == "ConvTranspose")
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == kernel)
    assert weight.shape == (8, 1, 2, 2)


def test_a_shuffle_of_pixels_is_not_tried_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    plain = LinearGraph.runner

    def counted(self: LinearGraph, region: Region) -> Run:
        run = plain(self, region)
        return lambda given: runs.append(region) or run(given)  # type: ignore[func-returns-value]

    monkeypatch.setattr(LinearGraph, "runner", counted)
    net = Net()
    cells = net.op("Reshape", net.input("x", "n", 24, 16, 32), net.const([0, 24, 8, 2, 16, 2], dtype=np.int64))
    turned = net.op("Transpose", cells, perm=[0, 1, 3, 5, 2, 4])
    small = net.op("Reshape", turned, net.const([0, 96, 8, 16], dtype=np.int64))
    net.output(net.op("Conv", small, net.random(5, 96, 3, 3), pads=[1, 1, 1, 1]))
    result = unchanged(FuseHaar(), net)
    assert any("are one strided convolution" in note for note in result.notes), result.notes
    assert len(runs) == 4, "what cells come to, and equal, loud and faint channels"
