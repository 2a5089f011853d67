"""The C++ library on ncnn: what it makes of a folder of clusir-export --target ncnn, beside Python."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from arm import arm_command
from onnx import TensorProto, helper, numpy_helper
from toolchain import CPP, REPOSITORY, build_cpp, photo, run

from clusir.export.formats.hosts.folders import export_targets, open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.ncnn.host import Ncnn
from clusir.runtimes.restore.restorer import Restorer
from clusir.spec import ModelSpec, SizeRequirements
from tests import needs

Command = list[str | Path]


def settings(variable: str) -> tuple[str, ...]:
    """ncnn alone, from the folder that ``variable`` names."""
    root = os.environ.get(variable)
    if not root:
        needs.skip("libncnn")
    return "-DCLUSIR_NCNN=ON", f"-DCMAKE_PREFIX_PATH={root}", "-DCLUSIR_ORT=OFF"


@pytest.fixture(scope="module")
def tool() -> Command:
    """clusir-raw."""
    given = *settings("CLUSIR_NCNN_ROOT"), "-DCLUSIR_OPENVINO=OFF", "-DCLUSIR_BUILD_TESTS=ON"
    return [build_cpp("ncnn", *given, targets=("clusir-raw",)) / "clusir-raw"]


@pytest.fixture(scope="module")
def arm_tool() -> Command:
    """clusir-raw for 64-bit Arm, under emulation."""
    return arm_command("clusir-raw", "aarch64-ncnn", settings("CLUSIR_NCNN_ARM_ROOT"))


def network(path: Path) -> Path:
    """The picture and two convolutions of it, in tiles of 48 px that overlap; what is at a border shows."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((8, 3, 5, 5), (3, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["wide"], pads=[2] * 4),
        helper.make_node("Relu", ["wide"], ["some"]),
        helper.make_node("Conv", ["some", "second"], ["change"], pads=[1] * 4),
        helper.make_node("Mul", ["change", "little"], ["less"]),
        helper.make_node("Add", ["image", "less"], ["restored"]),
    ]
    constants = {"first": weights[0], "second": weights[1], "little": np.float32(0.1)}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 48, 48]) for name in ("image", "restored")]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    spec = ModelSpec(name="small", size=SizeRequirements(1, 8, 48), tile_px=48, halo_px=8, dft_form="none")
    onnx.helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as ncnn opens it, and ``host.onnx``, the same graph as Python does."""
    if not os.environ.get(Ncnn.variable):
        needs.skip("ncnn")
    out = tmp_path_factory.mktemp("ncnn")
    source = open_source(network(out / "network.onnx"))
    export_targets(source, out, [Ncnn()])
    model = host_form(source, Ncnn().form(source))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, json.loads((out / "ncnn" / "model.json").read_text(encoding="utf-8")))
    onnx.save(model, str(out / "host.onnx"))
    return out


def restored(tool: Command, model: Path, pixels: np.ndarray, backend: str = "ncnn") -> np.ndarray:
    height, width = pixels.shape[:2]
    given, answer = model.parent / "in.rgb", model.parent / "out.rgb"
    given.write_bytes(pixels.tobytes())
    run(*tool, model, backend, "-", "1", str(width), str(height), given, answer)
    return np.fromfile(answer, np.uint8).reshape(pixels.shape)


@pytest.mark.parametrize("backend", ["ncnn", "auto"])
def test_tiles_are_those_of_python(tool: Command, folder: Path, backend: str) -> None:
    agrees(tool, folder, backend)


def test_tiles_on_arm_are_those_of_python(arm_tool: Command, folder: Path) -> None:
    agrees(arm_tool, folder, "ncnn")


def agrees(tool: Command, folder: Path, backend: str) -> None:
    pixels = photo(150, 91)  # neither is a multiple of anything; several tiles
    found = restored(tool, folder / "ncnn" / "model.param", pixels, backend)
    with Restorer(folder / "host.onnx", backend="ort", device="cpu") as restorer:
        wanted = restorer.restore(pixels)
    assert np.abs(wanted.astype(int) - pixels.astype(int)).max() > 4
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_the_script_builds_every_layer_that_is_written() -> None:
    """Kinds of layers as the writer names them: arguments of its functions, and the two kinds of convolutions."""
    text = (CPP / "tools" / "build_ncnn.sh").read_text("utf-8")
    (built,) = re.findall(r'^written="(.*?)"', text, re.M | re.S)
    source = "".join(path.read_text("utf-8") for path in (REPOSITORY / "export/formats/hosts/ncnn").glob("*.py"))
    named = set(re.findall(r'\b(?:one|add|same|_line)\(\s*"(\w+)"', source))
    convolutions = {f"{kind}{more}" for kind in ("Convolution", "Deconvolution") for more in ("", "DepthWise")}
    assert len(named) > 20
    assert set(built.split()) == named | convolutions


def test_what_is_wrong_is_said_in_a_line(tool: Command, folder: Path, tmp_path: Path) -> None:
    def told(model: Path, backend: str = "ncnn") -> str:
        arguments = ["-", "1", "8", "8", tmp_path / "in.rgb", tmp_path / "out.rgb"]
        (tmp_path / "in.rgb").write_bytes(bytes(192))
        return run(*tool, model, backend, *arguments, check=False).splitlines()[-1]

    assert "the ncnn back end opens the file model.param" in told(folder / "host.onnx")
    assert "backend 'ort' was not built in (there is: ncnn)" in told(folder / "ncnn" / "model.param", "ort")
    for name in ("model.param", "model.bin", "model.json"):
        (tmp_path / name).write_bytes((folder / "ncnn" / name).read_bytes())
    for name, text, why in [
        ("model.param", "7767517\n1 1\nNoSuchLayer a 0 1 input\n", "ncnn cannot load it"),
        ("model.json", "[]", "it is no JSON object"),
        ("model.json", "{}", "export the model again"),
    ]:
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        assert why in told(tmp_path / "model.param")
        (tmp_path / name).write_bytes(kept)
    (tmp_path / "model.json").unlink()
    assert "model.json: cannot be read" in told(tmp_path / "model.param")
