"""Python loops over the pixels: traced as what they mean, for any number of turns, or refused with the line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import recurrences
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from tests.bench.scans.__main__ import on


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


class PutBack(nn.Module):
    """Pixels sorted by brightness, smoothed along that order and put back, picture by picture."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        order = torch.sort(tokens.mean(2), dim=1, stable=True)[1]
        back, places = torch.zeros_like(order), torch.arange(order.shape[1])
        for i in range(order.shape[0]):
            back[i, order[i, :]] = places
        dense = torch.gather(tokens, 1, order[..., None].expand(tokens.shape))
        smooth = dense + 0.5 * torch.cat([dense[:, :1], dense[:, :-1]], 1)
        return torch.gather(smooth, 1, back[..., None].expand(tokens.shape)).transpose(1, 2).reshape(x.shape)


class OneByOne(nn.Module):
    """A loop over the batch that collects what it makes of each picture."""

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for i in range(x.shape[0]):
            made.append(x[i] * torch.sigmoid(x[i].mean((1, 2), keepdim=True)))  # noqa: PERF401
        return torch.stack(made)


class OwnMatrix(nn.Module):
    """A matrix of colours for each picture, as IAT applies them in a loop; an activation in place stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.2, inplace=True))
        self.matrix = nn.Linear(3, 9)

    @staticmethod
    def mixed(pixels: Tensor, matrix: Tensor) -> Tensor:
        flat = pixels.reshape(-1, 3)
        return torch.tensordot(flat, matrix, dims=[[-1], [-1]]).view(pixels.shape).clamp(1e-8, 1.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.matrix(x.mean((2, 3))).view(-1, 3, 3)
        pixels = self.first(x).permute(0, 2, 3, 1)
        mixed = [self.mixed(pixels[i], matrices[i]) for i in range(x.shape[0])]
        return torch.stack(mixed).permute(0, 3, 1, 2)


class Named(nn.Module):
    """A loop over the batch that looks its turn up in a list of Python."""

    def forward(self, x: Tensor) -> Tensor:
        gains = [1.0, 2.0, 3.0, 4.0]
        return torch.stack([x[i] * gains[i] for i in range(x.shape[0])])


@pytest.mark.parametrize("model", [PutBack(), OneByOne()], ids=["writes", "collects"])
def test_a_loop_over_the_batch_leaves_it_free(model: nn.Module) -> None:
    traced = trace_module(model.eval(), picture(1, 11, 13))
    assert (traced.dynamic_batch, traced.dynamic_size, traced.notes) == (True, True, ())
    run = traced.program.module(check_guards=False)
    for batch, height, width in ((1, 11, 13), (3, 9, 12)):
        image = picture(batch, height, width)
        torch.testing.assert_close(run(image)[0], model(image))


def test_a_matrix_for_each_picture_is_written() -> None:
    model = OwnMatrix().eval()
    traced = trace_module(model, picture(2, 11, 13))
    assert (traced.dynamic_batch, traced.dynamic_size) == (True, True)
    graph, _ = write_program(traced)
    for backend in ("ort", "openvino"):
        image = picture(3, 9, 12)
        np.testing.assert_allclose(on(backend, graph)(image.numpy()), model(image).detach().numpy(), atol=1e-5)


def test_a_loop_over_the_batch_that_asks_for_its_turn_fixes_it() -> None:
    traced = trace_module(Named().eval(), picture(1, 11, 13))
    assert (traced.dynamic_batch, traced.dynamic_size) == (False, True)
    assert traced.notes == ("the model's code fixes the batch: exported with batch 1",)
