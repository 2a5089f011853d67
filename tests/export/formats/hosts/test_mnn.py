"""MNN's file in MNN itself, operator by operator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from operator_graphs import GRAPHS, difference, six_axes
from small_graphs import Net

from clusir.export.formats.hosts.mnn import Mnn
from tests.needs import skip


@pytest.fixture
def mnn() -> Mnn:
    if not os.environ.get(Mnn.variable):
        skip("mnn")
    return Mnn()


@pytest.mark.parametrize("write", [*GRAPHS, six_axes])
def test_operators_are_right(mnn: Mnn, tmp_path: Path, write: Callable[[Net, str], list[str]]) -> None:
    assert difference(mnn, write, tmp_path) <= 1e-5
