"""Python loops over the pixels: traced as what they mean, for any number of turns, or refused with the line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import recurrences
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.trace.program import trace_module


class Walk(nn.Module):
    """One recurrence over decays and entries made of a picture."""

    def __init__(self, walk: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.walk = walk

    def forward(self, x: Tensor) -> Tensor:
        return self.walk(torch.sigmoid(3 * x), x - x.flip(1).mean((2, 3), keepdim=True))


def picture(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("walk", recurrences.RECURRENCES, ids=lambda walk: walk.__name__)
def test_a_linear_recurrence_is_traced_for_any_length(walk: Callable[[Tensor, Tensor], Tensor]) -> None:
    traced = trace_module(Walk(walk).eval(), picture(1, 11, 13))
    assert (traced.dynamic_batch, traced.dynamic_size) == (True, True)
    run = traced.program.module(check_guards=False)
    for batch, height, width in ((2, 11, 13), (1, 23, 9), (3, 9, 31)):
        image = picture(batch, height, width)
        torch.testing.assert_close(run(image)[0], Walk(walk)(image), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("walk", "why"), recurrences.REFUSED.items(), ids=lambda w: getattr(w, "__name__", ""))
def test_any_other_loop_over_the_pixels_is_refused(walk: Callable[[Tensor, Tensor], Tensor], why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"recurrences\.py:\d+ `for .*a loop of 14[23] turns.*{why}"):
        trace_module(Walk(walk).eval(), picture(1, 11, 13))
