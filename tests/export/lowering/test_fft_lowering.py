"""torch.fft through the lowering, on ONNX Runtime and OpenVINO, against torch."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from graphs_under_test import agree, exported, kinds, run_openvino, run_ort
from torch import Tensor, fft

from clusir.errors import UsageError
from clusir.export.lowering.fft import translation_table

Function = Callable[[Tensor], Tensor]


def pair(norm: str) -> Function:
    return lambda x: fft.irfft2(fft.rfft2(x, norm=norm) * 2.0, s=x.shape[-2:], norm=norm)


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x)


def soft_mask(x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[-2], dtype=torch.float32) / x.shape[-2]
    columns = torch.arange(x.shape[-1] // 2 + 1, dtype=torch.float32) / x.shape[-1]
    rho = torch.minimum(rows, 1 - rows)[:, None] ** 2 + columns[None] ** 2
    mask = torch.sigmoid((x.mean((2, 3), keepdim=True) - rho) / 0.05)
    return fft.irfft2(fft.rfft2(x) * mask, s=x.shape[-2:])


def check(
    function: Function, shape: tuple[int, ...], dynamic: tuple[int, ...] = (), others: tuple[tuple[int, ...], ...] = ()
) -> onnx.ModelProto:
    model = exported(function, shape, dynamic)
    assert "DFT" not in kinds(model)
    assert not [k for k in kinds(model) if "::" in k]
    for size in (shape, *others):
        x = torch.randn(size, generator=torch.Generator().manual_seed(1))
        expected = function(x).numpy()
        agree(run_ort(model, x.numpy()), expected)
        agree(run_openvino(model, x.numpy()), expected)
    return model


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_rfft2_irfft2_at_fixed_size(norm: str) -> None:
    check(pair(norm), (1, 3, 13, 10))


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_rfft2_irfft2_at_dynamic_size(norm: str) -> None:
    check(pair(norm), (2, 3, 16, 12), (2, 3), ((2, 3, 7, 9), (2, 3, 33, 50)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: real(fft.fftn(x, dim=(1, -1), norm="ortho")),
        lambda x: fft.ifft2(fft.fft2(x, norm="forward"), norm="forward").real,
        lambda x: fft.irfft(fft.rfft(x, dim=1), n=x.shape[1], dim=1),
        lambda x: fft.irfftn(fft.rfftn(x, dim=(1, 2, 3)), s=x.shape[-3:], dim=(1, 2, 3)),
        soft_mask,
    ],
    ids=["fftn of two axes", "fft2 of a complex", "rfft of axis 1", "rfftn of three axes", "soft mask"],
)
def test_other_forms_at_dynamic_size(function: Function) -> None:
    check(function, (2, 5, 6, 7), (1, 2, 3), ((2, 4, 9, 8),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: fft.irfft2(fft.rfft2(x, s=(20, 9)), s=(11, 24)),
        lambda x: real(fft.fft2(fft.ifft2(x), s=(20, 8), norm="ortho")),
        lambda x: fft.irfft2(fft.rfft2(x) * fft.rfft2(x.flip(2)), s=x.shape[-2:]),
        lambda x: fft.irfft2(fft.rfft2(x) * (2 + 1j), s=x.shape[-2:]),
        lambda x: fft.irfft2(fft.rfft2(x), s=x.shape[-2:])[:, :, :1],
    ],
    ids=["s pads and cuts", "s of a complex", "complex product", "complex scalar", "defaults"],
)
def test_sizes_and_products(function: Function) -> None:
    check(function, (1, 3, 13, 10))


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_patches_are_one_product_each_way(norm: str) -> None:
    model = check(lambda x: fft.irfft2(fft.rfft2(x, norm=norm).conj(), s=(8, 7), norm=norm), (2, 5, 8, 7))
    assert kinds(model)["MatMul"] == 2


def test_first_axis() -> None:
    check(lambda x: fft.irfft(fft.rfft(x, dim=0), n=x.shape[0], dim=0), (6, 3), (0,), ((9, 3),))


def test_a_real_mask_costs_one_multiplication() -> None:
    model = exported(soft_mask, (1, 3, 16, 16), simple=True)
    spectra = [n for n in model.graph.node if n.op_type == "Mul" and "fft" in n.input[0]]
    assert len(spectra) == 1, "torch's own lowering multiplies by the zero imaginary part of the mask as well"


def test_matmul_form_transforms_axis_by_axis() -> None:
    x = torch.randn(1, 3, 13, 10)
    model = exported(pair("ortho"), (1, 3, 13, 10), form="matmul")
    agree(run_ort(model, x.numpy()), pair("ortho")(x).numpy())
    assert kinds(model)["MatMul"] == 4
    assert "DFT" not in kinds(model)


def test_op_form_leaves_the_operator() -> None:
    assert translation_table("op") == {}
    assert kinds(exported(pair("ortho"), (1, 3, 16, 16), form="op"))["DFT"] == 4


def test_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, matmul, op"):
        translation_table("fft")  # type: ignore[arg-type]
