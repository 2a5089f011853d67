"""PositionwiseSpectrum: functions of single values between rfft2 and irfft2, and what looks like them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs_under_test import accept, kinds, refuse
from torch import Tensor, fft

from clusir.export.passes.positionwise_spectrum import PositionwiseSpectrum

Between = Callable[[Tensor], Tensor]


def around(between: Between, norm: str = "backward") -> Callable[[Tensor], Tensor]:
    return lambda x: fft.irfft2(between(fft.rfft2(x, norm=norm)), s=x.shape[-2:], norm=norm)


def rectified(bins: Tensor) -> Tensor:
    return torch.complex(torch.relu(bins.real), torch.relu(bins.imag))


def whole(bins: Tensor) -> Tensor:
    return torch.view_as_complex(torch.clamp(torch.view_as_real(bins), -3.0, 2.0))


def shrunk(bins: Tensor) -> Tensor:
    size = (bins.real**2 + bins.imag**2).sqrt()
    gain = torch.relu(size - 0.5) / (size + 1e-3)
    return torch.complex(bins.real * gain, bins.imag * gain)


def crossed(bins: Tensor) -> Tensor:
    return torch.complex(torch.tanh(bins.imag), torch.relu(2 * bins.real - 0.25))


def infinite_at_zero(bins: Tensor) -> Tensor:
    return torch.complex(torch.log(bins.real.abs()), torch.tanh(bins.imag))


FUNCTIONS = {"rectified": rectified, "whole": whole, "shrunk": shrunk, "crossed": crossed, "log": infinite_at_zero}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_single_values(name: str) -> None:
    size = {"rectified": (96, 110), "log": (128, 110)}.get(name, (110, 96))  # 110 = 10 x 11: its blocks are not full
    model = accept(PositionwiseSpectrum(), around(FUNCTIONS[name], "ortho"), (2, 3, *size), batch=True)
    counts = kinds(model)
    assert counts["MatMul"] == 13
    assert counts["Concat"] == (1 if name in ("rectified", "whole") else 3)
    assert not {"Gather", "Slice"} & set(counts)


@pytest.mark.parametrize("size", [(99, 105), (121, 96), (96, 106)], ids=str)
def test_odd_sizes_and_odd_factors(size: tuple[int, int]) -> None:
    assert kinds(accept(PositionwiseSpectrum(), around(rectified), (1, 2, *size), batch=True))["MatMul"] == 13


@pytest.mark.parametrize("shape", [(3, 96, 110), (2, 3, 2, 110, 96)], ids=str)
def test_leading_axes(shape: tuple[int, ...]) -> None:
    accept(PositionwiseSpectrum(), around(rectified), shape, batch=True)


def read_by_others(x: Tensor) -> Tensor:
    bins = fft.rfft2(x)
    return fft.irfft2(rectified(bins), s=x.shape[-2:]) * torch.sigmoid(bins.real).mean()


def handed_out(x: Tensor) -> tuple[Tensor, Tensor]:
    bins = rectified(fft.rfft2(x))
    return fft.irfft2(bins, s=x.shape[-2:]), torch.view_as_real(bins)


OTHERS: dict[str, Callable[[Tensor], object]] = {
    "read by others": read_by_others,
    "handed out": handed_out,
    "a mask": around(lambda bins: rectified(bins) * torch.linspace(0, 1, 49)),
    "a number for each channel": around(lambda bins: rectified(bins) + torch.ones(3, 1, 1)),
    "shifted": around(lambda bins: rectified(bins.roll(1, -2))),
    "turned round": around(lambda bins: rectified(bins.flip(-2))),
    "channels mixed": around(lambda bins: rectified(bins + bins.flip(1))),
    "half of the height": around(lambda bins: torch.cat([rectified(bins[..., :48, :]), bins[..., 48:, :]], -2)),
    "another size": lambda x: fft.irfft2(rectified(fft.rfft2(x)), s=(96, 95)),
    "the width alone": lambda x: fft.irfft(rectified(fft.rfft(x)), n=96),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_depends_on_the_place_or_on_other_values_stays(name: str) -> None:
    refuse(PositionwiseSpectrum(), OTHERS[name], (2, 3, 96, 96), "no rfft2 -> functions of single values -> irfft2")


@pytest.mark.parametrize("size", [(12, 12), (97, 96), (96, 97)], ids=str)
def test_sizes_that_do_not_factorise_stay(size: tuple[int, int]) -> None:
    reason = "no rfft2 -> functions of single values -> irfft2"
    refuse(PositionwiseSpectrum(), around(rectified), (2, 3, *size), reason)
