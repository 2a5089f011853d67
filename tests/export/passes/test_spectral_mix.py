"""FuseSpectralFilter where constants mix sines with cosines: oriented masks and complex multipliers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graphs_under_test import accept, agree, exported, kinds, refuse, run_ort
from torch import Tensor, fft, nn

from clusir.export.lowering.plan import plan
from clusir.export.passes.fuse_spectral import FuseSpectralFilter
from clusir.export.passes.spectral_mix import mixing

SIZES = [(12, 15), (15, 12), (96, 20), (21, 96), (96, 128)]


class GlobalFilter(nn.Module):
    """As GFNet has it: a learned complex number for each bin; ``channels`` 1 for one filter for all of them."""

    def __init__(self, height: int, width: int, channels: int = 1) -> None:
        super().__init__()
        weight = torch.randn(channels, height, width // 2 + 1, 2, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.weight)
        return fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


def oriented(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """A real mask that lets one diagonal through."""
    rows, columns = fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None]
    mask = torch.exp(-80 * (rows - columns) ** 2)
    return lambda x: fft.irfft2(fft.rfft2(x) * mask, s=x.shape[-2:])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (4, 7), (15, 12), (96, 20), (20, 250)])
def test_mixing_is_the_filter(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    rows, columns, x = plan(n), plan(m), rng.standard_normal((n, m))
    response = np.fft.fft2(rng.standard_normal((n, m)))
    kept, wide, high, both = (0.0 if p is None else p for p in mixing(response, rows, columns))
    value = rows.matrix() @ x @ columns.matrix().T
    turned = value[:, columns.partner()]
    value = kept * value + wide * turned + (high * value + both * turned)[rows.partner()]
    found = rows.matrix().T @ value @ columns.matrix()
    np.testing.assert_allclose(found, np.fft.ifft2(np.fft.fft2(x) * response).real, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_complex_multiplier_is_four_products(size: tuple[int, int]) -> None:
    model = accept(FuseSpectralFilter(), GlobalFilter(*size), (2, 3, *size), batch=True)
    assert (kinds(model)["Mul"], kinds(model)["Gather"]) == (4, 2)
    assert not {"Slice", "Concat"} & set(kinds(model))


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_an_oriented_mask_is_two_products(size: tuple[int, int]) -> None:
    model = accept(FuseSpectralFilter(), oriented(*size), (2, 3, *size), batch=True)
    assert (kinds(model)["Mul"], kinds(model)["Gather"]) == (2, 2)


@pytest.mark.parametrize("size", [(12, 14), (96, 128), (15, 13)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_bins_without_a_sine_are_those_of_torch(size: tuple[int, int]) -> None:
    # Only the frequencies 0 and N/2, where torch's irfft2 ignores a part of what it is given.
    module = GlobalFilter(*size)
    edges = torch.zeros(size[0], size[1] // 2 + 1, 1)
    edges[:, [0, -1]] = edges[[0, size[0] // 2]] = 1
    module.weight *= edges
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    result = FuseSpectralFilter().apply(exported(module, (2, 3, *size), simple=True))
    assert result.modified
    agree(run_ort(result.model, x.numpy()), module(x).numpy())


def test_complex_numbers_and_leading_axes() -> None:
    def turned(x: Tensor) -> Tensor:
        return fft.irfft2(fft.rfft2(x) * (2 + 1j), s=x.shape[-2:])

    for shape in ((3, 12, 10), (2, 3, 2, 10, 96), (2, 3, 2, 96, 10)):
        model = accept(FuseSpectralFilter(), turned, shape, batch=True)
        assert "Concat" not in kinds(model)


def test_multipliers_of_each_channel_stay() -> None:
    reason = "its multiplier differs between channels"
    refuse(FuseSpectralFilter(), GlobalFilter(12, 10, channels=3), (2, 3, 12, 10), reason)


def test_a_multiplied_spectrum_that_others_read_stays() -> None:
    def read(x: Tensor) -> Tensor:
        spectrum = fft.rfft2(x) * (2 + 1j)
        return fft.irfft2(spectrum, s=x.shape[-2:]) * torch.relu(spectrum.real).mean()

    refuse(FuseSpectralFilter(), read, (2, 3, 12, 12), "keeps its complex spectrum: other nodes read")
