"""Hosts whose own code is on no test machine: their files, what they are told, and that nothing more is promised."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from clusir.errors import ExportError, ModelFormatError, UnsupportedModelError
from clusir.export.formats.hosts.folders import Written, export_targets, hosts_of, open_source
from clusir.export.formats.hosts.selftest import verify_target
from clusir.export.formats.hosts.triton import Triton, configuration
from clusir.export.graph.session import Probe
from tests.needs import skip

Make = Callable[..., Path]


def written(name: str, path: Path, out: Path) -> Written:
    (made,) = export_targets(open_source(path), out, hosts_of([name]))
    assert [found.via for found in made.findings] == ["onnxruntime", name] * 2
    assert all(("not run here" in found.note) == (found.via == name) for found in made.findings)
    assert [found.note for found in verify_target(name, out)] == [found.note for found in made.findings]
    return made


@pytest.mark.parametrize("name", ["ffmpeg", "vs-mlrt"])
def test_the_file_of_a_video_tool_takes_frames_of_any_size(network: Make, tmp_path: Path, name: str) -> None:
    made = written(name, network(), tmp_path)
    assert made.files == ("RUN.txt", "golden/light.npz", "golden/noise.npz", "model.onnx", "target.json")
    text = (made.folder / "RUN.txt").read_text("utf-8")
    probe = Probe(onnx.load(str(made.folder / "model.onnx")))
    if name == "ffmpeg":
        assert f":input={probe.inputs[0]}:output={probe.outputs[0]} " in text
        assert "format=rgb24,dnn_processing=dnn_backend=onnx:model=model.onnx" in text
    else:
        assert "overlap=[16, 16]" in text
    frame = np.random.default_rng(1).random((1, 3, 37, 50), dtype=np.float32)
    assert probe.run({probe.inputs[0]: frame})[probe.outputs[0]].shape == frame.shape


def test_ffmpeg_gives_whole_frames(network: Make, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"64 px only; export it with --dynamic"):
        written("ffmpeg", network(64), tmp_path)
    made = written("vs-mlrt", network(64), tmp_path)
    assert "tilesize=[64, 64]" in (made.folder / "RUN.txt").read_text("utf-8")


@pytest.mark.parametrize("name", ["ffmpeg", "vs-mlrt", "triton", "darktable", "transformers.js"])
def test_who_gives_pictures_of_any_size_is_given_no_network_that_ends_at_one(
    network: Make, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"any size, and the network takes 512 px at most; .* with --size"):
        written(name, network(most=512), tmp_path)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("side", "dims"), [(0, "3, -1, -1"), (64, "3, 64, 64")])
def test_the_configuration_of_a_server(network: Make, tmp_path: Path, side: int, dims: str) -> None:
    made = written("triton", network(side), tmp_path)
    assert {"restorer/config.pbtxt", "restorer/1/model.onnx"} <= set(made.files)
    text = (made.folder / "restorer" / "config.pbtxt").read_text("utf-8")
    graph = onnx.load(str(made.folder / "restorer" / "1" / "model.onnx")).graph
    assert f'name: "{graph.input[0].name}" data_type: TYPE_FP32 dims: [ {dims} ]' in text
    assert f'name: "{graph.output[0].name}" data_type: TYPE_FP32 dims: [ {dims} ]' in text
    assert "max_batch_size: 8\n" in text  # the graph's first axis is open
    (made.folder / "restorer" / "config.pbtxt").write_text(text.replace("-1", "-2") + "\n")
    with pytest.raises(ModelFormatError, match=r"config\.pbtxt is not the file"):
        verify_target("triton", tmp_path)


def _text(dims: list[int | str]) -> str:
    """The configuration of a graph of such shapes."""
    values = [helper.make_tensor_value_info(name, 1, dims) for name in ("image", "restored")]
    node = helper.make_node("Identity", ["image"], ["restored"])
    return configuration(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])))


def _folder(path: Path, text: str) -> Path:
    (path / "restorer").mkdir(exist_ok=True)
    (path / "restorer" / "config.pbtxt").write_text(text)
    return path


def test_a_client_without_its_grpc_part_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tritonclient" / "grpc").mkdir(parents=True)
    (tmp_path / "tritonclient" / "__init__.py").touch()
    (tmp_path / "tritonclient" / "grpc" / "__init__.py").write_text("raise RuntimeError('no grpc')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tritonclient"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    Triton().check(_folder(tmp_path, "no configuration"))
    monkeypatch.delitem(sys.modules, "tritonclient", raising=False)


def test_tritons_protobuf_takes_the_configuration(tmp_path: Path) -> None:
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError):
        skip("triton")
    shapes: list[list[int | str]] = [["batch", 3, "height", "width"], ["batch", 3, 64, 64], [1, 3, 64, 64]]
    found = [text_format.Parse(_text(dims), model_config_pb2.ModelConfig()) for dims in shapes]
    assert [(c.max_batch_size, list(c.input[0].dims)) for c in found] == [
        (8, [3, -1, -1]), (8, [3, 64, 64]), (0, [1, 3, 64, 64])
    ]  # fmt: skip
    Triton().check(_folder(tmp_path, _text(shapes[0])))
    with pytest.raises(ExportError, match="Triton refuses it"):
        Triton().check(_folder(tmp_path, _text(shapes[0]).replace("TYPE_FP32", "TYPE_NONE")))


def test_a_graph_of_one_picture_is_no_batch() -> None:
    text = _text([1, 3, 64, 64])
    assert "max_batch_size: 0\n" in text
    assert text.count("dims: [ 1, 3, 64, 64 ]") == 2
    assert json.dumps("restorer") in text
