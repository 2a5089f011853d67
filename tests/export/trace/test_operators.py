"""Operators of restorers' code: right on both runtimes, for pictures of sizes and batches that no trace has seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import operators
import pytest
import torch
from torch import Tensor, nn

from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from tests.bench.scans.__main__ import on
from tests.export.trace.selections import SELECTIONS


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def picture(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def one_at_a_time(function: Callable[[Tensor], Tensor], image: Tensor) -> np.ndarray:
    return torch.cat([function(single[None]) for single in image]).numpy()


@pytest.mark.parametrize("function", [*operators.OPERATORS, *SELECTIONS], ids=lambda function: function.__name__)
def test_an_operator_is_right_at_any_size(function: Callable[[Tensor], Tensor]) -> None:
    traced = trace_module(Applies(function).eval(), picture(1, 21, 27))
    assert (traced.dynamic_batch, traced.dynamic_size) == (True, True)
    model, _ = write_program(traced)
    images = [picture(*shape) for shape in ((1, 20, 26), (1, 33, 17), (2, 14, 41))]
    # A histogram of the first picture alone is no function of each picture.
    whole = function is operators.histogram
    wanted = [function(image).numpy() if whole else one_at_a_time(function, image) for image in images]
    for backend in ("ort", "openvino"):
        run = on(backend, model)
        for image, want in zip(images, wanted, strict=True):
            np.testing.assert_allclose(run(image.numpy()), want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)


def test_rows_of_a_nearest_resize_are_torchs_own() -> None:
    """At heights where i * (out / in) is whole, and one bit less in the quotient picks the row before."""

    def up(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return nn.functional.interpolate(x[..., : height // 3, :], (height, width))

    model, _ = write_program(trace_module(Applies(up).eval(), picture(1, 21, 27)))
    for backend in ("ort", "openvino"):
        run = on(backend, model)
        for height in (74, 122, 123, 135, 141, 147):
            image = picture(1, height, 8)
            np.testing.assert_array_equal(run(image.numpy()), up(image).numpy(), err_msg=f"{backend}, {height} px")


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_stable_order_of_many_equal_values(backend: str) -> None:
    """Equal ones in the order in which they stood, also where a product of their numbers leaves 32 bits."""

    def order(x: Tensor) -> Tensor:
        return torch.argsort(x.flatten(1), dim=1, stable=True).to(x.dtype).view(x.shape)

    model, _ = write_program(trace_module(Applies(order).eval(), picture(1, 21, 27)))
    for side in (8, 160):
        image = torch.randint(0, 40000, (1, 3, side, side), generator=torch.Generator().manual_seed(0)) / 8
        np.testing.assert_array_equal(on(backend, model)(image.numpy()), order(image).numpy())


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_phase_of_self_mirrored_bins_is_exactly_none_or_half_a_turn(backend: str) -> None:
    model, _ = write_program(trace_module(Applies(lambda x: torch.fft.rfft2(x).angle()).eval(), picture(1, 21, 27)))
    run = on(backend, model)
    for height, width in ((16, 24), (15, 21), (14, 33)):
        image = picture(2, height, width)
        rows = (0, height // 2) if height % 2 == 0 else (0,)
        columns = (0, width // 2) if width % 2 == 0 else (0,)
        got, want = run(image.numpy()), torch.fft.rfft2(image).angle().numpy()
        for row in rows:
            for column in columns:
                np.testing.assert_array_equal(np.abs(got[..., row, column]), np.abs(want[..., row, column]))
