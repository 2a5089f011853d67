"""Sizes that are whole multiples get a symbol of their own; what they mean stays in the guards and in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from standins import PatchSpectralAttention
from torch import Tensor, nn

from clusir.export.lowering.whole import pad_whole
from clusir.export.module import export_module
from clusir.export.trace.anchors import anchor_sizes
from clusir.export.trace.program import trace_module
from clusir.export.trace.sizes import Guards
from clusir.runtimes import open_runner


class Patches(nn.Module):
    """Patch spectra of two sizes at half of the picture's size, as the map is padded to whole patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 12, 1)
        self.small, self.large = PatchSpectralAttention(4, 4), PatchSpectralAttention(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        f = self.down(x)
        f = f + self.small(f)
        return x + F.pixel_shuffle(self.up(f + self.large(f)), 2)


@pytest.mark.usefixtures("small_measures")
def test_patches_of_a_padded_map_are_right_on_both_runtimes(tmp_path: Path) -> None:
    made = export_module(Patches().eval(), "1x3x64x64", tmp_path / "patches.onnx")
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (2, 0)
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            for batch, height, width in ((2, 64, 64), (1, 50, 86), (1, 34, 130)):
                image = torch.rand(batch, 3, height, width)
                with torch.no_grad():
                    want = Patches().eval()(image).numpy()
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


class PadsToEight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
        if padded.shape[-2] > 96:
            padded = padded * 2
        return F.pixel_shuffle(F.pixel_unshuffle(padded, 8), 8)[..., :h, :w]


def test_a_padded_size_is_a_polynomial_and_its_guard_is_about_the_picture() -> None:
    traced = trace_module(PadsToEight().eval(), torch.rand(1, 3, 73, 139))
    padded = next(n for n in traced.program.graph.nodes if n.target is torch.ops.clusir.pad_whole.default)
    inner = [str(size) for size in padded.meta["val"].shape[2:]]
    assert all(size.startswith("8*") and "//" not in size and "Mod" not in size for size in inner)
    guards = Guards(traced.original, 3)
    assert not guards.broken(95, 139)
    assert guards.broken(97, 139)  # padded to 104, where the code takes the other path


class CountsAgain(nn.Module):
    """Pads to whole windows, and cuts windows of the size that it works out once more beside the map."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        below, right = (8 - h % 8) % 8, (8 - w % 8) % 8
        padded = F.pad(x, (0, right, 0, below), mode="reflect")
        high, wide = h + below, w + right
        windows = padded.reshape(b, c, high // 8, 8, wide // 8, 8)
        mixed = (windows - windows.mean((3, 5), keepdim=True)).reshape(b, c, high * wide)
        return mixed.view(b, c, high, wide)[..., :h, :w]


def test_a_padded_size_that_is_worked_out_again_is_the_same_symbol() -> None:
    traced = trace_module(CountsAgain().eval(), torch.rand(1, 3, 73, 139))
    kinds = (torch.ops.aten.reshape.default, torch.ops.aten.view.default)
    views = [n for n in traced.program.graph.nodes if n.target in kinds]
    assert len(views) >= 3
    sizes = [str(size) for view in views for size in view.meta["val"].shape]
    assert not [size for size in sizes if "//" in size or "Mod" in size], sizes
    assert not Guards(traced.original, 3).broken(50, 90)


class Halves(nn.Module):
    """Cuts a picture of whole multiples of eight in two at a float's half, and puts it together the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2], x.shape[3]
        top, bottom = x[:, :, 0 : int(h / 2), :], x[:, :, int(h / 2) : h, :]
        both = torch.cat([bottom, top], 2)
        return torch.cat([both[:, :, :, int(w / 2) :], both[:, :, :, : int(w / 2)]], 3)


def test_half_of_a_whole_multiple_is_built_of_what_it_is_a_multiple_of() -> None:
    traced = trace_module(Halves().eval(), torch.rand(1, 3, 72, 152), multiple=8)
    image = torch.rand(1, 3, 40, 88)
    torch.testing.assert_close(traced.program.module()(image)[0], Halves()(image))


def test_pad_whole_pads() -> None:
    x = torch.rand(1, 2, 5, 6)
    for mode in ("constant", "reflect", "replicate"):
        torch.testing.assert_close(pad_whole(x, [0, 2, 1, 2], mode, 0.0, [8, 8]), F.pad(x, (0, 2, 1, 2), mode))
    same = pad_whole(x, [0, 0, 0, 0], "constant", 0.0, [2, 1])
    assert torch.equal(same, x)
    assert same.data_ptr() != x.data_ptr()


def test_sizes_of_inner_tensors_are_counted_from_the_input() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    half = helper.make_tensor_value_info("half", TensorProto.FLOAT, ["batch", 3, "s1", "s2"])
    nodes = [
        helper.make_node("AveragePool", ["image"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["half"], ["rows"], start=2, end=3),
        helper.make_node("Shape", ["half"], ["all"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("rows", "all")]
    graph = helper.make_graph(nodes, "g", [image], outputs, value_info=[half])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    anchor_sizes(model, {"s1": (2, 2), "s2": (3, 2)})
    onnx.checker.check_model(model)
    asked = [n.input[0] for n in model.graph.node if n.op_type == "Shape"]
    assert sorted(asked) == ["half", "image"]  # the shape as a whole stays
    from onnx.reference import ReferenceEvaluator

    rows, _ = ReferenceEvaluator(model).run(None, {"image": np.zeros((1, 3, 14, 22), np.float32)})
    assert rows.tolist() == [7]
