"""DotProducts: products of a row and a column for each pixel, and what is left as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import accept, kinds, refuse
from torch import Tensor

from clusir.export.passes.plain.dot_products import DotProducts


def kernels(x: Tensor) -> Tensor:
    """A 3x3 kernel for each pixel and channel, made of the picture."""
    (n, c, h, w) = x.shape
    patches = F.unfold(x, 3, padding=1).reshape(n, c, 9, h * w).permute(0, 3, 1, 2)
    made = torch.tanh(patches.flip(-1)).unsqueeze(-2) @ patches.unsqueeze(-1)
    return made.reshape(n, h * w, c).transpose(1, 2).reshape(x.shape)


def colours(x: Tensor) -> Tensor:
    """A matrix of colours for each pixel."""
    pixels = x.flatten(2).transpose(1, 2).unsqueeze(-1)
    matrices = torch.tanh(pixels * pixels.mT + pixels.mT)
    return (matrices @ pixels).squeeze(-1).transpose(1, 2).reshape(x.shape)


def shared(x: Tensor) -> Tensor:
    """One row for all pixels of a picture, of fewer axes than the columns."""
    pixels = x.flatten(2).transpose(1, 2).unsqueeze(-1).unsqueeze(0)
    row = x[:1].mean((2, 3)).reshape(1, 1, 3)
    return (row @ pixels).reshape(x.shape[0], 1, *x.shape[2:]) + x


@pytest.mark.parametrize("function", [kernels, colours, shared], ids=lambda f: f.__name__)
def test_a_row_and_a_column_for_each_pixel_are_a_product_and_a_sum(function: Callable[[Tensor], Tensor]) -> None:
    for open_sizes in (False, True):
        model = accept(DotProducts(), function, (2, 3, 6, 8), sizes=open_sizes)
        assert "MatMul" not in kinds(model)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x.mT,
        lambda x: x.flatten(2).transpose(1, 2).unsqueeze(-1).mT @ torch.arange(3.0).view(1, 1, 3, 1),
        lambda x: x[..., :1, :] @ x.expand(2, 3, 128, 128)[..., :1],
        lambda x: x.view(2, 3, 16, 8)[..., :5, :] @ x.view(2, 3, 16, 8)[..., :8, :1],
    ],
    ids=["matrices", "constants", "many terms", "many rows"],
)
def test_other_products_stay(function: Callable[[Tensor], Tensor]) -> None:
    refuse(DotProducts(), function, (2, 3, 1, 128), "no product of a row and a column")
