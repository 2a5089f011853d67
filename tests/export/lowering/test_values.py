"""Writes that are new values of a tensor become values without another run of the program; others do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.lowering.splice import without_writes, writes
from clusir.export.lowering.values import plain_writes


class Of(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(3, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _residual(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    made += x
    made *= 2
    return made


def _activation(m: nn.Module, x: Tensor) -> Tensor:
    return F.leaky_relu_(m.conv(x), 0.2) + F.relu_(m.conv(x - 0.5)).clamp_(0, 0.3)


def _mask(m: nn.Module, x: Tensor) -> Tensor:
    scores = m.conv(x) * 1.0
    return scores.masked_fill_(x > 0.5, -100.0).softmax(1)


def _best_scores(m: nn.Module, x: Tensor) -> Tensor:
    """A mask of the largest ones, as attention between the strongest channels has it."""
    scores = m.conv(x).flatten(2)
    best = scores.topk(7, -1)[1]
    mask = torch.zeros_like(scores)
    mask.scatter_(-1, best, 1.0)
    known = torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, best, True)
    sums = torch.zeros_like(scores).scatter_add_(-1, best % 5, scores).scatter_(-1, best + 0, scores[..., :7])
    return torch.where(mask > 0, scores, -9.0).softmax(-1) + known + sums


def _scattered_base_read_later(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    made.flatten(2).scatter_(-1, torch.arange(5).expand(1, 3, 5), 2.0)
    return made


def _through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    flat = made.reshape(1, 3, -1)
    flat += 1
    return flat.mean(2) + x.mean()


def _base_read_later(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    made[:, 0] += 1
    return made


def _parts_of_parts(m: nn.Module, x: Tensor) -> Tensor:
    """Windows numbered one after the other, and counts that are made in place, as shifted windows have them."""
    number = torch.zeros(1, 6, 8, 1)
    for rows in (slice(0, -2), slice(-2, None)):
        for columns in (slice(0, -4), slice(-4, None, 2)):
            number[:, rows, columns, :] = number.sum() + 1
    apart = (torch.arange(8)[:, None, None] - torch.arange(2)).permute(1, 2, 0).contiguous()
    apart[:, :, 0] += 5
    apart[:, :, 1] *= 2
    apart[0] -= x.shape[-1]
    made = m.conv(x).permute(0, 2, 3, 1)
    made[..., ::2, 1] = made[..., 1::2, 0]
    made[..., 3, :].mul_(number[0, 1, 2])
    return made + number + apart.sum()


def _listed_places(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x) * torch.tensor([0.5, 0.25, 2.0])[:, None, None]
    made[:, [0, 2]] = made[:, [1]] + 1
    made[0, 1][made[0, 0] > 0.6] = 7.0
    rank = torch.zeros(8, dtype=torch.long)
    rank[torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])] = torch.arange(8)
    return made[..., rank]


def _part_of_an_expanded_one(m: nn.Module, x: Tensor) -> Tensor:
    """All rows are one: what is written into the first is in each."""
    rows = m.conv(x).mean((2, 3))[0].expand(4, 3)
    rows[0] += 1
    return rows.sum(0)


def _two_parts_at_once(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    one, two = made[:, 0], made[:, :2]
    one += 1
    return made + two.sum()


def _view_read_later(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    part = made[:, 1:]
    made *= 3
    return part


def _chunk_read_later(m: nn.Module, x: Tensor) -> Tensor:
    made = m.conv(x)
    one, two, three = made.chunk(3, dim=1)
    two += one
    return made * three


def _over_the_picture(m: nn.Module, x: Tensor) -> Tensor:
    x += m.gain
    return m.conv(x)


def _of_another_type(m: nn.Module, x: Tensor) -> Tensor:
    count = (x > 0.5).to(torch.float16)
    count += m.conv(x)
    return count.to(torch.float32)


VALUES = [
    _residual,
    _activation,
    _mask,
    _best_scores,
    _through_a_view,
    _base_read_later,
    _parts_of_parts,
    _listed_places,
]
MORE = [
    _part_of_an_expanded_one,
    _two_parts_at_once,
    _view_read_later,
    _chunk_read_later,
    _scattered_base_read_later,
    _over_the_picture,
    _of_another_type,
]


def _traced(function: Callable[[nn.Module, Tensor], Tensor]) -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    model = Of(function).eval().requires_grad_(False)
    with torch.no_grad():
        return model, torch.export.export(model, (torch.rand(1, 3, 6, 8),), strict=False)


@pytest.mark.parametrize("function", VALUES + MORE)
def test_a_program_without_writes_gives_what_the_model_gives(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model, program = _traced(function)
    written = [node for node in program.graph.nodes if writes(node)]
    assert written
    assert (plain_writes(program.graph, written) is not None) == (function in VALUES)
    made = without_writes(program)
    assert not [node for node in made.graph.nodes if writes(node)]
    x = torch.rand(1, 3, 6, 8)
    want = model(x.clone())
    torch.testing.assert_close(made.module()(x.clone()), want, rtol=0, atol=0)


@pytest.mark.parametrize("function", VALUES)
def test_new_values_need_no_run_of_the_program(
    function: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, program = _traced(function)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the program was run once more")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refuse)
    made = without_writes(program)
    assert made is not program
    assert made._guards_code == program._guards_code
