"""Core ML's package: what its program computes, operator by operator, and that a wrong one is seen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from operator_graphs import GRAPHS, difference, six_axes
from small_graphs import Net

from clusir.errors import ValidationError
from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.coreml.host import CoreMl
from clusir.export.formats.hosts.folders import export_targets, open_source
from tests.needs import skip


@pytest.fixture
def coreml() -> CoreMl:
    if not os.environ.get(CoreMl.variable):
        skip("coreml")
    return CoreMl()


@pytest.mark.parametrize("write", GRAPHS)
def test_operators_are_right(coreml: CoreMl, tmp_path: Path, write: Callable[[Net, str], list[str]]) -> None:
    assert difference(coreml, write, tmp_path) <= 1e-5


def test_six_axes_are_refused(coreml: CoreMl, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="rank <= 5"):
        difference(coreml, six_axes, tmp_path)


def test_the_package_is_computed_and_not_called_run(
    coreml: CoreMl, network: Callable[..., Path], tmp_path: Path
) -> None:
    (made,) = export_targets(open_source(network(64)), tmp_path, [coreml])
    assert "model.mlpackage/Data/com.apple.CoreML/model.mlmodel" in made.files
    assert [(found.agreement, found.note.startswith("not run here")) for found in made.findings] == [(None, True)] * 2
    path = tmp_path / "coreml" / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(path.read_bytes())
    shutil.copy(path, tmp_path / "whole")
    weights = np.frombuffer(content, "<f4")
    (place,) = [int(k) for k in np.flatnonzero(weights == np.float32(1 / 9))[4:5]]
    content[4 * place : 4 * place + 4] = np.float32(1 / 8).tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(ValidationError, match=r"^the program of the package, light: "):
        coreml.check(tmp_path / "coreml")
    path.write_bytes(content[:64])
    with pytest.raises(ValidationError, match=r"^coreml, the package: "):
        coreml.check(tmp_path / "coreml")


def test_an_operator_without_a_form_is_named(coreml: CoreMl, tmp_path: Path) -> None:
    net = Net()
    net.input("image", 1, 3, 16, 16)
    net.output(net.op("Atan", "image", name="restored"))
    with pytest.raises(Refused, match="no form of Atan"):
        coreml.convert(net.model(), tmp_path)
