"""GramAttention: channel attention without its queries, keys and values; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs_under_test import accept, agree, exported, kinds, refuse, run_ort
from torch import Tensor, nn

from clusir.export.passes.gram_attention import GramAttention
from clusir.export.passes.order import fusing_passes
from clusir.network.layers import ChannelAttention


class Attention(nn.Module):
    """Channel attention whose logits are neither all equal nor saturated."""

    def __init__(self, heads: int = 1, depthwise: bool = False) -> None:
        super().__init__()
        self.attention = ChannelAttention(8, heads, depthwise)
        nn.init.constant_(self.attention.temperature, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.attention(torch.relu(x)))


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_reads_its_features_twice(heads: int) -> None:
    model = accept(GramAttention(), Attention(heads), (2, 8, 12, 10), batch=True)
    assert "Conv" not in kinds(model)
    over_pixels = [v for v in model.graph.value_info if any(d.dim_value == 120 for d in v.type.tensor_type.shape.dim)]
    assert len(over_pixels) <= 5  # x flattened (twice), scaled, transposed, and the result


def test_attention_without_norms_or_projection() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 6, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x)
            q, k = (t.reshape(t.shape[0], 2, 3, -1) for t in (self.q(x), self.k(x) * 0.5))
            return torch.softmax(q @ k.transpose(-2, -1), -1)

    model = accept(GramAttention(), Bare(), (2, 6, 4, 5), batch=True)
    assert "Conv" not in kinds(model)


def test_attention_refuses_depthwise_projections_and_other_readers() -> None:
    refuse(GramAttention(), Attention(depthwise=True), (2, 8, 6, 6), "no attention between channels")

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Conv2d(6, 6, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).reshape(x.shape[0], 1, 6, -1)
            return torch.softmax(q @ q.transpose(-2, -1), -1) @ torch.tanh(q)

    refuse(GramAttention(), Leaky(), (2, 6, 4, 5), "no attention between channels")

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (t.reshape(x.shape[0], 1, 6, -1) for t in (self.q(x), self.k(x)))
            return torch.softmax(q @ k.transpose(-2, -1), -1)

    refuse(GramAttention(), Shifted(), (2, 6, 4, 5), "no attention between channels")


def test_norms_that_vanish_leave_numbers() -> None:
    module = Attention()
    for weight in (module.attention.query.weight, module.attention.key_value.weight):
        weight.data -= weight.data.mean(1, keepdim=True)
    model = accept(GramAttention(), module, (2, 8, 12, 10))
    flat = np.full((2, 8, 12, 10), 7.3, np.float32)
    assert np.isfinite(run_ort(model, flat)).all()


def test_attention_of_dynamic_size_stays_right() -> None:
    model = exported(Attention(2), (2, 8, 12, 10), dynamic=(0, 2, 3), simple=True)
    fused = model
    for step in fusing_passes():
        fused = step.apply(fused).model
    x = np.random.default_rng(0).standard_normal((3, 8, 6, 14), dtype=np.float32)
    agree(run_ort(fused, x), run_ort(model, x), 5e-6)
