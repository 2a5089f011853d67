"""FuseSpectralFilter where no mask stands between the transforms: a bare pair, a number, a gain for each channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs_under_test import accept, agree, exported, kinds, refuse, run_ort
from torch import Tensor, fft

from clusir.export.passes.fuse_spectral import FuseSpectralFilter
from clusir.network.wavelet import haar_forward, haar_inverse

Between = Callable[[Tensor, Tensor], Tensor]
SIZES = [(12, 15), (13, 12), (1, 120), (96, 20), (20, 97), (21, 96), (96, 128)]


def pair(norm: str = "backward", between: Between | None = None) -> Callable[[Tensor], Tensor]:
    def there_and_back(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x, norm=norm)
        spectrum = spectrum if between is None else between(spectrum, x)
        return fft.irfft2(spectrum, s=x.shape[-2:], norm=norm)

    return there_and_back


def stages(size: tuple[int, int]) -> int:
    """Products there and back: two for a factorised axis (an even one from 96 on), one for any other."""
    return sum(4 if n >= 96 and n % 2 == 0 else 2 for n in size)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_bare_pair_is_computed_in_the_real_basis_and_not_folded_away(size: tuple[int, int]) -> None:
    model = accept(FuseSpectralFilter(), pair(), (2, 3, *size), batch=True)
    assert kinds(model)["MatMul"] == stages(size)
    assert not {"Gather", "Concat", "Slice", "Mul"} & set(kinds(model))


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_norms_and_numbers_go_into_the_matrices(norm: str) -> None:
    numbers: list[Between] = [lambda s, x: s * -2.5, lambda s, x: s * torch.tensor(-2.5)]
    for size, number in zip(((12, 15), (96, 96)), numbers, strict=True):
        model = accept(FuseSpectralFilter(), pair(norm, number), (2, 3, *size))
        assert set(kinds(model)) <= {"MatMul", "Reshape", "Transpose"}
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        agree(run_ort(model, x.numpy()), (-2.5 * x).numpy())


def test_transforms_that_differ_in_norm() -> None:
    model = accept(FuseSpectralFilter(), lambda x: fft.irfft2(fft.rfft2(x, norm="ortho")), (2, 3, 12, 14))
    assert kinds(model) == {"MatMul": 4}


@pytest.mark.parametrize("shape", [(3, 12, 10), (2, 3, 2, 96, 10), (2, 3, 2, 10, 96)], ids=str)
def test_leading_axes(shape: tuple[int, ...]) -> None:
    accept(FuseSpectralFilter(), pair(), shape, batch=True)
    accept(FuseSpectralFilter(), pair(between=lambda s, x: s * x.mean((-1, -2), keepdim=True)), shape, batch=True)


def test_transforms_lowered_axis_by_axis_are_recognised_too() -> None:
    before = exported(pair(between=lambda s, x: s * 2), (2, 3, 12, 15), form="matmul", simple=True)
    result = FuseSpectralFilter().apply(before)
    assert result.modified
    assert kinds(result.model) == {"MatMul": 4}
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 15), dtype=np.float32)
    agree(run_ort(result.model, x), 2 * x)


GAINS: dict[str, Between] = {
    "constant": lambda s, x: s * torch.linspace(0.5, 2, 4)[:, None, None],
    "of rank 5": lambda s, x: torch.view_as_complex(torch.view_as_real(s) * x[..., None].mean((2, 3), keepdim=True)),
    "of each picture": lambda s, x: s * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "one computed number": lambda s, x: s * torch.sigmoid(x.mean()),
    "times a number": lambda s, x: 3 * s * torch.linspace(0.5, 2, 4)[:, None, None] / 2,
    "negative": lambda s, x: torch.tanh(x.amax((2, 3), keepdim=True) - 9) * s,
}


@pytest.mark.parametrize("between", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("size", [(12, 15), (96, 20), (20, 96)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_gain_is_one_product(between: Between, size: tuple[int, int]) -> None:
    model = accept(FuseSpectralFilter(), pair(between=between), (2, 4, *size), batch=True)
    assert kinds(model)["MatMul"] == stages(size)
    assert kinds(model)["Mul"] == 1
    assert "Gather" not in kinds(model)


def test_two_pairs_and_a_filter_in_one_graph() -> None:
    mask = torch.exp(-torch.arange(7.0) / 3)

    def three(x: Tensor) -> Tensor:
        y = torch.relu(pair()(x))
        return pair("ortho")(torch.relu(pair(between=lambda s, x: s * mask)(y)))

    model = accept(FuseSpectralFilter(), three, (2, 3, 12, 12))
    assert kinds(model) == {"MatMul": 12, "Relu": 2, "Mul": 1}


def test_a_spectrum_that_others_read_stays() -> None:
    def read_in_between(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x)
        return fft.irfft2(spectrum, s=x.shape[-2:]) * torch.relu(spectrum.real).mean()

    def twice(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x)
        low = fft.irfft2(spectrum * torch.exp(-torch.arange(7.0)), s=x.shape[-2:])
        return torch.relu(fft.irfft2(spectrum, s=x.shape[-2:])) + low

    def gain_read_in_between(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x) * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return fft.irfft2(spectrum, s=x.shape[-2:]) * torch.relu(spectrum.imag).mean()

    for function in (read_in_between, twice, gain_read_in_between):
        refuse(FuseSpectralFilter(), function, (2, 3, 12, 12), "keeps its complex spectrum: other nodes read")


def test_a_spectrum_that_the_caller_gets_stays() -> None:
    def handed_out(x: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = fft.rfft2(x)
        return fft.irfft2(spectrum, s=x.shape[-2:]), torch.view_as_real(spectrum)

    refuse(FuseSpectralFilter(), handed_out, (2, 3, 12, 12), "is an output of the graph")


WIDE = torch.linalg.qr(torch.randn(14, 12, generator=torch.Generator().manual_seed(0)))[0]


def other_pair(x: Tensor) -> Tensor:
    """Another orthogonal transform and back; what lies between has the shape of an rfft2."""
    return (((x * 2) @ WIDE.T) @ WIDE) / 2


LOOK_ALIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "another size": lambda x: fft.irfft2(fft.rfft2(x), s=(12, 11)),
    "another height": lambda x: fft.irfft2(fft.rfft2(x), s=(10, 12)),
    "conjugated": pair(between=lambda s, x: s.conj()),
    "rectified": pair(between=lambda s, x: torch.view_as_complex(torch.relu(torch.view_as_real(s)))),
    "shifted": pair(between=lambda s, x: s.roll(1, -2)),
    "width only": lambda x: fft.irfft(fft.rfft(x), n=x.shape[-1]),
    "other axes": lambda x: fft.irfft2(fft.rfft2(x, dim=(1, 2)), s=x.shape[1:3], dim=(1, 2)),
    "another transform": other_pair,
    "Haar": lambda x: haar_inverse(*haar_forward(x)),
}


@pytest.mark.parametrize("function", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_what_only_looks_like_a_pair_stays(function: Callable[[Tensor], Tensor]) -> None:
    refuse(FuseSpectralFilter(), function, (2, 3, 12, 12), "no rfft2 -> real mask -> irfft2")
