"""Each graph pass: what it accepts (numbers kept, operators gone) and what it refuses, with its reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import accept, agree, exported, kinds, refuse, run_ort
from torch import Tensor, fft, nn

from clusir.export.graph.edit import GraphEdit
from clusir.export.passes import fuse_haar
from clusir.export.passes.fuse_haar import FuseHaar
from clusir.export.passes.fuse_spectral import FuseSpectralFilter
from clusir.export.passes.fuse_upsample import FuseUpsample
from clusir.export.passes.mean_as_convolution import MeanAsConvolution
from clusir.export.passes.order import fusing_passes
from clusir.network.layers import ChannelLayerNorm
from clusir.network.wavelet import haar_forward, haar_inverse


class Stem(nn.Module):
    """Haar, 3x3 convolution, ReLU, 3x3 convolution, inverse Haar: the two ends of a network behind a Haar stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.relu(self.stem(torch.cat(haar_forward(x), 1))))
        return x + haar_inverse(y[:, :3], y[:, 3:])


class Attention(nn.Module):
    """The low band through one convolution, the high bands through a gate, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.low = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.high = nn.Conv2d(18, 18, 3, padding=1, groups=18)

    def forward(self, x: Tensor) -> Tensor:
        low, high = haar_forward(self.enter(x))
        return haar_inverse(self.low(low), torch.sigmoid(self.high(high)))


def sliced_haar(x: Tensor) -> Tensor:
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.relu(torch.cat([(a + b + c + d) / 2, (a - b + c - d) / 2], 1))


def test_haar_stem_and_head_go_into_their_convolutions() -> None:
    model = accept(FuseHaar(), Stem(), (2, 3, 16, 24), batch=True)
    assert set(kinds(model)) <= {"Conv", "Relu", "DepthToSpace", "Add"}
    assert kinds(model)["Conv"] == 2


def test_haar_between_nonlinear_parts_becomes_depthwise_convolutions() -> None:
    model = accept(FuseHaar(), Attention(), (2, 3, 16, 16), batch=True)
    assert kinds(model)["DepthToSpace"] == 1
    assert "Transpose" not in kinds(model)
    assert sum(n.op_type == "Conv" and any(a.name == "strides" for a in n.attribute) for n in model.graph.node) >= 4


def test_haar_written_with_slices_is_found_too() -> None:
    model = accept(FuseHaar(), sliced_haar, (2, 4, 12, 12))
    assert "Slice" not in kinds(model)


def test_haar_refuses_what_only_looks_alike() -> None:
    def reaches_out(x: Tensor) -> Tensor:  # the second sample comes from the neighbouring cell
        return torch.relu(x[..., ::2, ::2] - x.roll(-2, -1)[..., ::2, 1::2])

    refuse(FuseHaar(), reaches_out, (2, 4, 12, 12), "no 2x2 cell transform")


class SoftFilter(nn.Module):
    """A radial low-pass whose cut-off depends on the picture, in channel groups."""

    def __init__(self, lopsided: bool = False) -> None:
        super().__init__()
        self.lopsided = lopsided

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[-2], dtype=torch.float32) / x.shape[-2]
        rows = rows if self.lopsided else torch.minimum(rows, 1 - rows)
        columns = torch.arange(x.shape[-1] // 2 + 1, dtype=torch.float32) / x.shape[-1]
        rho = rows[:, None] ** 2 + columns[None] ** 2
        cut = torch.sigmoid(x.reshape(x.shape[0], 2, -1).mean(-1))[:, :, None, None, None]
        grouped = x.reshape(x.shape[0], 2, -1, *x.shape[-2:])
        low = fft.irfft2(fft.rfft2(grouped) * torch.sigmoid((cut - rho) / 0.05), s=x.shape[-2:])
        return low.reshape(x.shape)


@pytest.mark.parametrize("size", [(12, 15), (13, 12), (96, 20), (20, 96), (96, 128)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_soft_filter_runs_in_the_real_basis(size: tuple[int, int]) -> None:
    model = accept(FuseSpectralFilter(), SoftFilter(), (2, 4, *size), batch=True)
    stages = sum(2 if n >= 96 else 1 for n in size) * 2
    assert kinds(model)["MatMul"] == stages
    assert "Gather" not in kinds(model)


def test_constant_mask_is_permuted_at_export() -> None:
    mask = torch.rand(4, 96, 49)
    mask = (mask + mask[:, -torch.arange(96) % 96]) / 2
    model = accept(FuseSpectralFilter(), lambda x: fft.irfft2(fft.rfft2(x) * mask, s=(96, 96)), (2, 4, 96, 96))
    assert kinds(model)["MatMul"] == 8


def test_filter_refuses_a_mask_that_tells_up_from_down() -> None:
    refuse(FuseSpectralFilter(), SoftFilter(lopsided=True), (2, 4, 12, 12), "is not symmetric in vertical frequency")


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_symmetry_up_from_down_is_judged_by_the_size_of_the_mask(scale: float) -> None:
    rows = torch.arange(12, dtype=torch.float32) / 12

    def scaled(rows: Tensor) -> Callable[[Tensor], Tensor]:
        mask = scale * (0.5 + rows)[:, None].expand(12, 7)
        return lambda x: fft.irfft2(fft.rfft2(x) * (mask * x.mean((2, 3), keepdim=True)), s=(12, 12))

    accept(FuseSpectralFilter(), scaled(torch.minimum(rows, 1 - rows)), (2, 4, 12, 12))
    refuse(FuseSpectralFilter(), scaled(rows), (2, 4, 12, 12), "is not symmetric in vertical frequency")


def test_filter_refuses_a_mask_made_of_the_spectrum() -> None:
    def gated(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x)
        return fft.irfft2(spectrum * torch.sigmoid(spectrum.real), s=x.shape[-2:])

    refuse(FuseSpectralFilter(), gated, (2, 4, 12, 12), "no rfft2 -> real mask -> irfft2")


class Upsample(nn.Module):
    def __init__(self, kernel: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 20, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def test_upsampling_becomes_a_transposed_convolution() -> None:
    model = accept(FuseUpsample(), Upsample(), (2, 6, 5, 7), batch=True)
    assert kinds(model) == {"ConvTranspose": 1}


def test_upsampling_refuses_larger_kernels_and_biases() -> None:
    refuse(FuseUpsample(), Upsample(kernel=3), (2, 6, 5, 7), "larger than 1x1")
    refuse(FuseUpsample(), Upsample(bias=True), (2, 6, 5, 7), "has a bias")
    refuse(FuseUpsample(), lambda x: F.relu(x), (2, 6, 5, 7), "no DepthToSpace")


def test_channel_norm_takes_its_means_by_convolution() -> None:
    model = accept(MeanAsConvolution(), ChannelLayerNorm(6), (2, 6, 5, 7), batch=True)
    assert kinds(model)["Conv"] == 2
    assert "ReduceMean" not in kinds(model)


def test_other_means_stay() -> None:
    refuse(MeanAsConvolution(), lambda x: x - x.mean((2, 3), keepdim=True), (2, 6, 5, 7), "no mean over the channels")
    refuse(MeanAsConvolution(), lambda x: x.mean(1) * 2, (2, 6, 5, 7), "no mean over the channels")


def test_passes_leave_a_graph_of_dynamic_size_right() -> None:
    model = exported(Stem(), (2, 3, 16, 16), dynamic=(2, 3), simple=True)
    fused = model
    for step in fusing_passes():
        fused = step.apply(fused).model
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 40), dtype=np.float32)
    agree(run_ort(fused, x), run_ort(model, x), 5e-6)


@pytest.mark.parametrize(("network", "left"), [(Stem, {"Conv", "Relu", "DepthToSpace", "Add"}), (Attention, None)])
def test_haar_of_open_size_is_found_as_of_a_fixed_one(network: type[nn.Module], left: set[str] | None) -> None:
    model = exported(network(), (2, 3, 16, 32), dynamic=(0, 2, 3), simple=True)
    result = FuseHaar().apply(model)
    assert result.modified, result.notes
    assert not {"Slice", "Split", "Sub"} & set(kinds(result.model))
    assert left is None or set(kinds(result.model)) == left
    for shape in ((1, 3, 24, 40), (2, 3, 272, 16), (3, 3, 2, 2)):
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        agree(run_ort(result.model, x), run_ort(model, x), 5e-6)


def test_a_cell_transform_of_one_size_alone_stays() -> None:
    """What is found at the size that a graph is looked at with has to hold at another one."""
    model = exported(Attention(), (2, 3, 16, 32), dynamic=(0, 2, 3), simple=True)
    linear = GraphEdit(model, (256, 288)).linear()
    assert linear.sized
    found = [f for v in linear.producer if (f := fuse_haar._find(linear, v, halves=True)) is not None]
    assert found
    assert fuse_haar._holds_elsewhere(linear, found[0].region, True, found[0].kernel)
    assert not fuse_haar._holds_elsewhere(linear, found[0].region, True, 2 * found[0].kernel)
