"""ExecuTorch's program in ExecuTorch itself, operator by operator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from operator_graphs import GRAPHS, difference
from small_graphs import Net

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.executorch.host import ExecuTorch
from tests.needs import skip


@pytest.fixture
def executorch() -> ExecuTorch:
    if not os.environ.get(ExecuTorch.variable):
        skip("executorch")
    return ExecuTorch()


@pytest.mark.parametrize("write", GRAPHS)
def test_operators_are_right(executorch: ExecuTorch, tmp_path: Path, write: Callable[[Net, str], list[str]]) -> None:
    assert difference(executorch, write, tmp_path) <= 1e-5


def test_an_operator_without_a_form_is_named(executorch: ExecuTorch, tmp_path: Path) -> None:
    net = Net()
    net.input("input", 1, 3, 16, 16)
    net.output(net.op("Atan", "input", name="output"))
    with pytest.raises(Refused, match="no form of Atan"):
        executorch.convert(net.model(), tmp_path)
