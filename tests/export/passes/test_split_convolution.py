"""SplitConvolution: what it cuts, what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import accept, exported, kinds, refuse
from torch import Tensor, nn

from clusir.export.graph.probe import LinearGraph
from clusir.export.passes.split_convolution import SplitConvolution


class Gated(nn.Module):
    """Restormer's gated feed-forward: 1x1, depthwise 3x3, halves, GELU(a) * b. Without ``enter`` something else is in
    front of the depthwise convolution; ``leak`` reads it whole."""

    def __init__(
        self, hidden: int = 16, enter: bool = True, leak: bool = False, axis: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.leak, self.axis = leak, axis
        channels = 2 * hidden
        self.enter = nn.Conv2d(4, channels, 1, bias=bias) if enter else nn.ConvTranspose2d(4, channels, 1)
        self.spread = nn.Conv2d(channels, channels, 3, padding=1, stride=1, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.spread(self.enter(x))
        a, b = whole.chunk(2, dim=self.axis)
        out = F.gelu(a) * b
        return out + whole.mean() if self.leak else out


class Uneven(nn.Module):
    """Parts of 16 and 24 channels, one read by a depthwise convolution of stride 2, the other by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 40, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.split(self.enter(x), [16, 24], dim=1)
        return torch.cat([self.a(one), F.avg_pool2d(two * torch.tanh(two), 2)], 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [True, False], ids=["any size", "fixed size"])
def test_a_gated_feed_forward_becomes_two_lanes(bias: bool, sizes: bool) -> None:
    model = accept(SplitConvolution(), Gated(bias=bias), (2, 4, 6, 10), batch=True, sizes=sizes)
    assert "Split" not in kinds(model)
    assert kinds(model)["Conv"] == 4


def test_uneven_parts_and_biases_are_cut_where_the_split_cuts() -> None:
    model = accept(SplitConvolution(), Uneven(), (2, 4, 6, 6), batch=True)
    assert "Split" not in kinds(model)
    assert kinds(model)["Conv"] == 3


class Shuffled(nn.Module):
    """Groups of two channels: not depthwise, and not to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.mix(self.enter(x)).chunk(2, dim=1)
        return a * b


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Gated(leak=True), id="read whole"),
        pytest.param(lambda: Gated(enter=False), id="nothing in front of the depthwise one"),
        pytest.param(lambda: Gated(hidden=8), id="narrow"),
        pytest.param(lambda: Gated(axis=2), id="rows"),
        pytest.param(Shuffled, id="groups"),
    ],
)
def test_what_would_not_gain_or_not_be_the_same_stays(make: Callable[[], nn.Module]) -> None:
    refuse(SplitConvolution(), make(), (2, 4, 6, 6), "no convolution is only split")


def test_a_graph_is_not_indexed_anew_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Sequential(Gated(), nn.Conv2d(16, 4, 1)) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = x + step(x)
            return x

    model, built = exported(Many(), (1, 4, 8, 8), simple=True), []
    made = LinearGraph.__init__
    monkeypatch.setattr(LinearGraph, "__init__", lambda self, *given: (built.append(1), made(self, *given))[1])
    assert SplitConvolution().apply(model).modified
    assert len(built) <= 2
