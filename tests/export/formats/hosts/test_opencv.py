"""OpenCV's DNN module, run: a graph that it reads is right in it, one that it misreads is never written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.errors import UnsupportedModelError, ValidationError
from clusir.export.formats.hosts import opencv
from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.formats.hosts.selftest import verify_target
from clusir.export.passes.simplify import AttachMetadata
from clusir.runtimes.runners.files import find_model
from clusir.spec import ModelSpec, SizeRequirements

Make = Callable[..., Path]
NAME = "opencv"


@pytest.mark.parametrize("side", [0, 64])
def test_opencv_itself_agrees(network: Make, tmp_path: Path, side: int) -> None:
    (made,) = export_targets(open_source(network(side)), tmp_path, hosts_of([NAME]))
    own = [found for found in made.findings if found.via == NAME]
    assert len(own) == 2
    assert all(found.agreement is not None and found.agreement.ok for found in own)
    graph = onnx.load(str(tmp_path / NAME / "model.onnx")).graph
    dims = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 3, side or 128, side or 128]
    assert len(graph.output) == 1
    assert [found.via for found in verify_target(NAME, tmp_path)] == ["onnxruntime", NAME] * 2


def test_an_operator_that_opencv_does_not_have_is_named_before(tmp_path: Path) -> None:
    net = Net(opset=17)
    net.input("image", 1, 3, 64, 64)
    net.output(net.op("Bernoulli", "image", name="restored"))
    path = described(net, tmp_path)
    with pytest.raises(UnsupportedModelError, match="OpenCV refuses the graph: it has no Bernoulli"):
        export_targets(open_source(path), tmp_path / "out", hosts_of([NAME]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["Tanh", "Softplus"])
def test_large_values_do_not_overflow_in_opencv(tmp_path: Path, kind: str) -> None:
    """OpenCV's own operator gives NaN or infinity for them."""
    net = Net(opset=17)
    net.input("image", 1, 3, 64, 64)
    large = net.op("Mul", net.op("Sub", "image", net.const(0.5)), net.const(400.0))
    bent = net.op(kind, large)
    net.output(net.op("Mul", bent, net.const(0.005), name="restored"))
    (made,) = export_targets(open_source(described(net, tmp_path)), tmp_path / "out", hosts_of([NAME]))
    assert [found.via for found in made.findings] == ["onnxruntime", NAME] * 2


@pytest.mark.slow
def test_the_shipped_network_is_right_in_opencv(tmp_path: Path) -> None:
    (made,) = export_targets(open_source(find_model(None).whole), tmp_path, hosts_of([NAME]))
    assert [found.via for found in made.findings] == ["onnxruntime", NAME] * 2


@pytest.mark.parametrize("wrong", [np.float32(1.01), np.float32("nan")])
def test_a_wrong_answer_of_opencv_is_seen(
    network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: np.float32
) -> None:
    source = open_source(network(64))
    export_targets(source, tmp_path, hosts_of([NAME]))
    right = opencv.answers
    monkeypatch.setattr(opencv, "answers", lambda *asked: [y * wrong for y in right(*asked)])
    with pytest.raises(ValidationError, match="opencv, light"):
        verify_target(NAME, tmp_path)
    with pytest.raises(UnsupportedModelError, match="opens the graph and answers wrong"):
        export_targets(source, tmp_path / "out", hosts_of([NAME]))
    assert not (tmp_path / "out").exists()


def described(net: Net, folder: Path) -> Path:
    spec = ModelSpec(name="net", size=SizeRequirements(8, 8, 64), tile_px=64, halo_px=8, dft_form="none")
    path = folder / "net.onnx"
    onnx.save(AttachMetadata(spec).apply(net.model()).model, str(path))
    return path
