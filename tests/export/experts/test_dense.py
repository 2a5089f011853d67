"""The dense form of routed experts gives what the sparse one gives, whatever its experts are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clusir.errors import ExportError
from clusir.export.experts.dense import DensifyExperts, MergedExperts, SeparateExperts
from clusir.network.experts import Expert, SparseExperts


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = SparseExperts(8, (2, 4, 3), (3, 5, 3))

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        return self.experts(u, shared, gate)


class Louder(Expert):
    def forward(self, u: Tensor, shared: Tensor) -> Tensor:
        return super().forward(u, shared) * 1.5


def holder() -> Holder:
    torch.manual_seed(1)
    return Holder().eval()


def with_bias(part: str) -> Holder:
    model = holder()
    expert = model.experts.experts[1]
    assert isinstance(expert, Expert)
    getattr(expert, part).bias = nn.Parameter(torch.randn(getattr(expert, part).out_channels))
    return model


def with_another(expert: nn.Module) -> Holder:
    model = holder()
    model.experts.experts[1] = expert
    return model


class Sum(nn.Module):
    def forward(self, u: Tensor, shared: Tensor) -> Tensor:
        return 0.5 * u + shared


CASES = {
    "plain": (holder, "(1 of them merged)"),
    "bias of enter": (lambda: with_bias("enter"), "enter of expert 1 has a bias"),
    "bias of body": (lambda: with_bias("body"), "body of expert 1 has a bias"),
    "bias of leave": (lambda: with_bias("leave"), "leave of expert 1 has a bias"),
    "another class": (lambda: with_another(Sum()), "expert 1 is a Sum"),
    "a class of its own": (lambda: with_another(Louder(8, 4, 5)), "expert 1 is a Louder"),
}


@pytest.mark.parametrize("case", CASES)
def test_dense_is_sparse(case: str) -> None:
    build, said = CASES[case]
    model = build().eval()
    result = DensifyExperts().apply(model)
    assert any(said in note for note in result.notes), result.notes
    kind = MergedExperts if case == "plain" else SeparateExperts
    assert isinstance(result.model.experts, kind)
    u, shared = torch.randn(3, 8, 6, 7), torch.randn(3, 8, 6, 7)
    gate = torch.tensor([[0.4, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 0.7]])
    with torch.no_grad():
        torch.testing.assert_close(result.model(u, shared, gate), model(u, shared, gate), atol=1e-5, rtol=1e-5)


def test_the_merged_form_by_itself_refuses_what_it_would_lose() -> None:
    with pytest.raises(ExportError, match="cannot be merged: leave of expert 1 has a bias"):
        MergedExperts(with_bias("leave").experts)
