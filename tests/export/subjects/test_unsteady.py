"""Networks whose answer is decided by rounding: refused at once, before anything is traced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.module import export_module
from clusir.export.subjects.checks import check_steady
from clusir.export.subjects.restorer import Restorer


class ScattersBack(nn.Module):
    """Attention over tokens in the order of their values, as histograms of them have it, put back where they came from:
    two that are almost equal change places, and what stands there differs."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.wide:
            found = conv(x - x.mean((2, 3), keepdim=True))
            made, index = (9 * found).flatten(2).sort(dim=-1)
            mixed = conv(made.reshape(x.shape)).flatten(2)
            x = x + torch.tanh(torch.zeros_like(mixed).scatter(2, index, 9 * mixed.roll(7, 2))).view(x.shape)
        return x


class Posterised(nn.Module):
    """Whole numbers in between: a pixel may jump, a picture does not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 255) / 255


def pictures(side: int = 48) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_network_that_rounding_decides_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    class Fraction(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.remainder(x * 2.0**24 / 3, 1.0)

    said: list[str] = []
    told = r"moves by 0\.\d+ in the mean where its picture moves by the last bit: .*; try trained weights, or take"
    with pytest.raises(UnsupportedModelError, match=told):
        export_module(Fraction().eval(), "1x3x48x48", tmp_path / "net.onnx", progress=said.append)
    assert not any("tracing" in step for step in said)


def test_tokens_that_are_put_back_by_rank_are_decided_by_rounding_after_a_few_blocks() -> None:
    with pytest.raises(UnsupportedModelError, match="it sorts, compares or rounds"):
        check_steady(Restorer(ScattersBack(12).eval(), ""), pictures())


def test_a_few_pixels_that_jump_are_no_reason() -> None:
    check_steady(Posterised(), pictures())
    edges = (torch.arange(48 * 48 * 3).reshape(1, 3, 48, 48) % 255 + 0.5) / 255  # each of them between two
    with pytest.raises(UnsupportedModelError, match="last bit"):
        check_steady(Posterised(), edges)
    check_steady(Posterised(), torch.cat([edges, pictures()[:1]]))
