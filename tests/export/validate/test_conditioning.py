"""How far rounding moves a model's own answer is not left to one draw of luck, nor excuses what is far beyond it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clusir.export.validate.conditioning import rounding


class Steep(nn.Module):
    """Multiplies rounding by ten thousand, and counts its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(x.dtype)
        return torch.sin(1e4 * (x + 0.1) / 3)


def test_the_farthest_of_some_answers_counts_where_one_is_not_enough() -> None:
    picture, model = torch.full((1, 1, 1, 1), 0.61803), Steep()
    once = rounding(model, picture)
    assert model.answers == [torch.float32]  # the float64 answers are a copy's
    assert 0 < once < 1e-2
    assert rounding(Steep(), picture, None, once) == once
    most = rounding(model, picture, None, 4 * once)
    assert 1.5 * once < most < 1e-2
    assert len(model.answers) <= 1 + 8
    model.answers.clear()
    assert rounding(model, picture, None, math.inf) == once
    assert len(model.answers) == 1  # nothing that rounding does would be enough
