"""Deformable convolutions of libraries: right against a count by hand, and exported as they are called."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.module import export_module
from clusir.export.trace.deformable import NOTE, deformable_convolution, mmcv_importable
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from tests.bench.scans.__main__ import on


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor, how: tuple[int, int, int]) -> np.ndarray:
    """One number after another, in float64."""
    stride, pad, apart = how
    (count, c, high, wide), (made, per, kh, kw) = x.shape, w.shape
    taps, groups = kh * kw, c // per
    shared = mask.shape[1] // taps
    rows, columns = offset.shape[2:]
    out = np.zeros((count, made, rows, columns))

    def at(b: int, channel: int, y: int, x_: int) -> float:
        return float(x[b, channel, y, x_]) if 0 <= y < high and 0 <= x_ < wide else 0.0

    for b, o, i, j in np.ndindex(count, made, rows, columns):
        for k in range(per):
            channel = o // (made // groups) * per + k
            group = channel // (c // shared)
            for t in range(taps):
                way = 2 * (group * taps + t)
                y = i * stride - pad + t // kw * apart + float(offset[b, way, i, j])
                z = j * stride - pad + t % kw * apart + float(offset[b, way + 1, i, j])
                top, left = math.floor(y), math.floor(z)
                sample = sum(
                    (1 - abs(y - row)) * (1 - abs(z - column)) * at(b, channel, row, column)
                    for row in (top, top + 1)
                    for column in (left, left + 1)
                )
                out[b, o, i, j] += float(w[o, k, t // kw, t % kw]) * float(mask[b, group * taps + t, i, j]) * sample
    return out


@pytest.mark.parametrize(
    ("groups", "shared", "how"), [(1, 1, (1, 1, 1)), (2, 1, (2, 1, 1)), (1, 2, (1, 2, 2)), (4, 2, (2, 0, 1))]
)
def test_every_number_is_that_of_a_count_by_hand(groups: int, shared: int, how: tuple[int, int, int]) -> None:
    x, w = numbers(2, 4, 6, 5), numbers(4, 4 // groups, 3, 3, seed=1)
    rows, columns = ((n + 2 * how[1] - 2 * how[2] - 1) // how[0] + 1 for n in (6, 5))
    offset = 2 * numbers(2, 18 * shared, rows, columns, seed=2)
    offset[0, :, 0] = offset[0, :, 0].round()  # whole places too
    mask = numbers(2, 9 * shared, rows, columns, seed=3)
    made = deformable_convolution(x, w, None, offset, mask, how)
    np.testing.assert_allclose(made.numpy(), by_hand(x, w, offset, mask, how), atol=2e-5)
    plain = deformable_convolution(x, w, numbers(4), torch.zeros_like(offset), None, how)
    want = F.conv2d(x, w, numbers(4), how[0], how[1], how[2], groups)
    np.testing.assert_allclose(plain.numpy(), want.numpy(), atol=1e-5)


@pytest.fixture
def kernel() -> Iterator[Callable[..., Any]]:
    """torchvision's operator, as its library declares it: its values are asked for outside a trace alone."""
    if importlib.util.find_spec("torchvision") is not None:
        import torchvision  # noqa: F401
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        numbers = ", ".join(f"SymInt {n}" for n in ["sh", "sw", "ph", "pw", "dh", "dw", "groups", "shared"])
        tensors = ", ".join(f"Tensor {n}" for n in ["input", "weight", "offset", "mask", "bias"])
        library.define(f"deform_conv2d({tensors}, {numbers}, bool masked) -> Tensor")
    yield torch.ops.torchvision.deform_conv2d
    library._destroy()


class Deforms(nn.Module):
    def __init__(self, kernel: Callable[..., Any]) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight, self.bias = nn.Parameter(numbers(6, 3, 3, 3) / 5), nn.Parameter(numbers(6, seed=1))
        self.ask, self.tail = nn.Conv2d(3, 27, 3, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, mask = self.ask(x).chunk(3, 1)
        offset, mask = 3 * torch.cat([rows, columns], 1), mask.sigmoid()
        return x + self.tail(self.kernel(x, self.weight, offset, mask, self.bias, 2, 2, 1, 1, 1, 1, 1, 1, True))


def ours(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *_: Any) -> Tensor:
    return deformable_convolution(x, weight, bias, offset, mask, (2, 1, 1))


@torch.no_grad()
def test_the_operator_of_torchvision_is_written_out(kernel: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    network = Deforms(kernel).eval()
    want = Deforms(ours).eval()
    want.load_state_dict(network.state_dict())
    model, _ = write_program(trace_module(network, numbers(1, 3, 24, 40), multiple=2))
    for backend in ("ort", "openvino"):
        run = on(backend, model)
        for shape in ((1, 20, 34), (2, 46, 18), (2, 8, 64)):
            picture = numbers(shape[0], 3, *shape[1:], seed=7)
            np.testing.assert_allclose(run(picture.numpy()), want(picture).numpy(), atol=1e-5)


NETWORK = """
import torch
from torch import nn
from mmcv.ops import ModulatedDeformConv2d, deform_conv2d, modulated_deform_conv2d


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.ask = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 54, 3, 1, 1)
        self.layer = ModulatedDeformConv2d(8, 8, 3, padding=1, deform_groups=2)
        self.weight = nn.Parameter(torch.randn(8, 4, 3, 3) / 6)
        self.tail = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x):
        f = self.head(x)
        rows, columns, mask = torch.chunk(self.ask(f), 3, dim=1)
        offset, mask = torch.cat((rows, columns), dim=1), torch.sigmoid(mask)
        f = f + self.layer(f, offset, mask)
        f = f + modulated_deform_conv2d(f.contiguous(), offset, mask, self.weight, None, 1, 1, 1, 2, 2)
        f = f + deform_conv2d(f, offset, self.weight, 1, 1, 1, 2, 2)
        return x + self.tail(f)


def factory():
    torch.manual_seed(0)
    return Net()
"""


@pytest.mark.usefixtures("small_measures")
def test_a_network_that_imports_mmcv_needs_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imports_mmcv.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = export_module("imports_mmcv:factory", "1x3x32x32", tmp_path / "deforms.onnx", backends=("ort",))
    assert NOTE in made.notes
    assert made.spec.size.multiple_of == 1
    assert not made.spec.size.static_px
    assert max(row.error for row in made.agreements) < 1e-5


def test_what_is_stood_in_for_is_gone_afterwards() -> None:
    with mmcv_importable() as stand_in:
        assert not stand_in.used
        import mmcv.ops

        assert stand_in.used
        assert callable(mmcv.ops.deform_conv2d)
    assert "mmcv" not in sys.modules
    assert "mmcv.ops" not in sys.modules
