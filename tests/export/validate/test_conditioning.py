"""How far rounding moves a model's own answer is not left to one draw of luck, nor excuses what is far beyond it."""

from __future__ import annotations

import math

import pytest
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


class Pinned(nn.Module):
    """Multiplies rounding by ten thousand, and asks for float32 by name before a product with a weight."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.how = nn.Linear(4, 4), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "float":
            x = x.float()
        elif self.how == "to":
            x = x.to(torch.float32)
        elif self.how == "made":
            x = x + self.mix(torch.full_like(x, 0.1, dtype=torch.float32)) - self.mix(torch.zeros(x.shape) + 0.1)
        return torch.sin(1e4 * self.mix(x))


@pytest.mark.parametrize("how", ["float", "to", "made"])
def test_a_model_that_asks_for_float32_by_name_has_a_float64_form(how: str) -> None:
    picture = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="dtype"):
        Pinned(how).double()(picture.double())
    found, plain = rounding(Pinned(how), picture), rounding(Pinned(""), picture)
    assert found == pytest.approx(plain, rel=0 if how != "made" else 1)
    assert 1e-5 < found < 1e-2
    assert torch.get_default_dtype() == torch.float32


def test_a_model_that_holds_float32_of_its_own_has_none() -> None:
    held = torch.rand(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), Held(held))
    assert rounding(model, torch.rand(1, 1, 4, 4)) == 0


class Held(nn.Module):
    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.held = [held]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.held[0]
