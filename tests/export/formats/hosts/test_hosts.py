"""The host form, the folders of hosts, and their self-test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import helper
from onnx.numpy_helper import to_array

from clusir.cli.export import main as export
from clusir.cli.verify import main as verify
from clusir.errors import ModelFormatError, UnsupportedModelError, UsageError, ValidationError
from clusir.export.formats.hosts.base import HostForm
from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.formats.hosts.form import common_faults, host_form, reference
from clusir.export.formats.hosts.registry import TARGETS
from clusir.export.formats.hosts.selftest import verify_target, write_record
from clusir.export.graph.session import Probe
from clusir.names import HOSTS
from clusir.runtimes import Restorer

Make = Callable[..., Path]
JS = "transformers.js"
rng = np.random.default_rng(2)


def test_the_commands_offer_the_hosts_that_there_are() -> None:
    assert sorted(HOSTS) == sorted(TARGETS)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8), (9, 31), (40, 56)])
@pytest.mark.parametrize("highlights", [False, True])
def test_the_host_form_takes_any_size_and_any_value(network: Make, size: tuple[int, int], highlights: bool) -> None:
    source = open_source(network())
    form = HostForm("a", "b", any_size=True, highlights=highlights)
    probe = Probe(host_form(source, form))
    assert (probe.inputs, probe.outputs) == (["a"], ["b"])
    image = rng.normal(0.5, 1.5, (1, 3, *size)).astype(np.float32)
    got = probe.run({"a": image})["b"]
    assert got.shape == image.shape
    assert np.abs(got - reference(source, form)(image)).max() <= 1e-6
    bright = got[image > 3]
    if bright.size:
        assert (bright > 2).all() if highlights else (bright <= 1).all()


@pytest.mark.parametrize("side", [64, 70])
def test_a_host_may_fix_the_open_axes(network: Make, side: int) -> None:
    """As darktable does with its tiles, and transformers.js with free_dimension_overrides."""
    source = open_source(network())
    form = HostForm("a", "b", any_size=True)
    options = onnxruntime.SessionOptions()
    for name in (form.height, form.width):
        options.add_free_dimension_override_by_name(name, side)
    content = host_form(source, form).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    image = rng.random((1, 3, side, side), dtype=np.float32)
    assert np.abs(session.run(None, {"a": image})[0] - reference(source, form)(image)).max() <= 1e-6


def test_the_host_form_pads_as_clusir_does(network: Make) -> None:
    path = network()
    image = rng.random((1, 3, 45, 27), dtype=np.float32)
    form = HostForm("a", "b", any_size=True)
    got = Probe(host_form(open_source(path), form)).run({"a": image})["b"]
    with Restorer(str(path), backend="ort") as restorer:
        wanted = restorer.restore(np.ascontiguousarray(image[0].transpose(1, 2, 0)))
    assert np.abs(np.asarray(wanted) - got[0].transpose(1, 2, 0).clip(0, 1)).max() <= 1e-6


def test_names_inside_the_graph_do_not_clash(network: Make) -> None:
    source = open_source(network())
    probe = Probe(host_form(source, HostForm("restored", "image", any_size=True)))
    assert (probe.inputs, probe.outputs) == (["restored"], ["image"])


def test_graphs_that_are_no_picture_to_picture_are_named(network: Make) -> None:
    source = open_source(network())
    assert common_faults(source) == []
    assert "tile graph" in common_faults(replace(source, spec=replace(source.spec, graph="tile")))[0]
    assert common_faults(replace(source, spec=replace(source.spec, graph="pooled", statistics=4))) == []
    grey = replace(source, spec=replace(source.spec, channels=1))
    assert common_faults(grey) == []
    assert common_faults(grey, (3,)) == ["it takes 1 channel, the host gives 3"]
    masked = replace(source, spec=replace(source.spec, maps=("mask",), map_defaults=(0.0,)))
    assert common_faults(masked) == ["it takes a map beside the picture (mask), the host gives the picture alone"]
    assert "4 pictures" in common_faults(open_source(network(64, batch=4)))[0]
    more = onnx.ModelProto()
    more.CopyFrom(source.model)
    more.graph.input.append(helper.make_tensor_value_info("sigma", onnx.TensorProto.FLOAT, [1]))
    assert "second input, sigma" in common_faults(replace(source, model=more))[0]


def test_a_static_graph_is_refused_for_a_page_before_anything_is_written(network: Make, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"64 px only.*--dynamic"):
        export_targets(open_source(network(64)), tmp_path / "out", hosts_of([JS]))
    assert not (tmp_path / "out").exists()


def test_the_folder_is_what_the_pipeline_reads(network: Make, tmp_path: Path) -> None:
    (made,) = export_targets(open_source(network()), tmp_path / "out", hosts_of([JS]))
    folder = tmp_path / "out" / JS
    assert made.files == ("config.json", "golden/light.npz", "golden/noise.npz", "onnx/model.onnx",
                          "onnx/model_fp16.onnx", "preprocessor_config.json", "target.json")  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["transformers.js_config"]["dtype"]) == ("swin2sr", "fp32")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert (processor["do_pad"], processor["do_rescale"], processor["do_resize"]) == (False, True, False)
    graph = onnx.load(str(folder / "onnx" / "model.onnx")).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert (graph.input[0].name, dims) == ("pixel_values", ["batch_size", 3, "height", "width"])
    with np.load(folder / "golden" / "noise.npz") as case:
        assert case["reduces"]  # a blur does, so that the test of noise is not idle
    export_targets(open_source(network()), tmp_path / "out", hosts_of([JS]))  # its own files are replaced


def test_another_file_is_never_replaced(network: Make, tmp_path: Path) -> None:
    folder = tmp_path / "out" / JS
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        export_targets(open_source(network()), tmp_path / "out", hosts_of([JS]))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_text() == "mine"


def _edited(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Another graph, with the record that belongs to it."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    (folder / "target.json").unlink()
    write_record(folder, JS, ("pixel_values", "reconstruction"))


def _weaker(model: onnx.ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if to_array(t).shape == (3, 3, 3, 3))
    weight.CopyFrom(onnx.numpy_helper.from_array(to_array(weight) * np.float32(0.999), weight.name))


def _not_finite(model: onnx.ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if to_array(t).shape == (3, 3, 3, 3))
    weight.CopyFrom(onnx.numpy_helper.from_array(to_array(weight) * np.float32("nan"), weight.name))


def _renamed(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "answer"


def _not_cropped(model: onnx.ModelProto) -> None:
    (cut,) = (n for n in model.graph.node if n.op_type == "Slice")
    cut.op_type, cut.input[:] = "Identity", [cut.input[0]]


@pytest.mark.parametrize(
    ("edit", "why"),
    [(_weaker, "differs by"), (_not_finite, "not finite"), (_renamed, "were promised"), (_not_cropped, "shape")],
)
def test_the_self_test_sees_every_break(
    network: Make, tmp_path: Path, edit: Callable[[onnx.ModelProto], None], why: str
) -> None:
    export_targets(open_source(network()), tmp_path, hosts_of([JS]))
    assert all(found.agreement is None or found.agreement.ok for found in verify_target(JS, tmp_path))
    _edited(tmp_path / JS, edit)
    with pytest.raises(ValidationError, match=why):
        verify_target(JS, tmp_path)


def test_a_changed_or_missing_file_is_named(network: Make, tmp_path: Path) -> None:
    export_targets(open_source(network()), tmp_path, hosts_of([JS]))
    config = tmp_path / JS / "config.json"
    config.write_text("{}")
    with pytest.raises(ModelFormatError, match=r"config\.json is not the file"):
        verify_target(JS, tmp_path)
    config.unlink()
    with pytest.raises(ModelFormatError, match=r"config\.json is missing"):
        verify_target(JS, tmp_path)
    (tmp_path / JS / "target.json").write_text("[]")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        verify_target(JS, tmp_path)


def test_the_commands_write_and_verify(network: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSIR_TRANSFORMERS_JS", raising=False)
    out = str(tmp_path / "out")
    done = CliRunner().invoke(export, ["--onnx", out, "--target", JS, "--from", str(network()), "--json"])
    assert done.exit_code == 0, done.output
    (made,) = json.loads(done.stdout)["targets"]
    assert [row["via"] for row in made["findings"]] == ["onnxruntime", "onnxruntime", JS] * 2
    assert all(("not run here" in row["note"]) == (row["via"] == JS) for row in made["findings"])
    done = CliRunner().invoke(verify, ["--target", JS, out])
    assert done.exit_code == 0, done.output
    assert "not run here" in done.output


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--onnx", "o", "--target", "nonsense"], 2, "nonsense"),
        (["--onnx", "o.onnx", "--target", JS], 2, "name a folder"),
        (["--onnx", "o", "--target", JS, "--tile", "64"], 2, "--tile does nothing"),
        (["--onnx", "o", "--target", JS, "--range", "0..255"], 2, "--range describes"),
        (["--onnx", "o", "--target", JS, "--from", "absent.onnx"], 2, "absent"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(export, words)
    assert done.exit_code == code, done.output
    assert why in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clusir.export.formats.hosts.base.find_spec", lambda name: None)
    for name in HOSTS:
        done = CliRunner().invoke(export, ["--onnx", str(tmp_path / "o"), "--target", name])
        assert done.exit_code == 3, done.output
        assert 'pip install "clusir[' in done.output


def test_a_file_of_another_tool_is_adopted_first(tmp_path: Path) -> None:
    kernel = onnx.numpy_helper.from_array(np.full((3, 1, 3, 3), 1 / 9, np.float32), "k")
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, "h", "w"]) for n in "xy"]
    node = helper.make_node("Conv", ["x", "k"], ["y"], group=3, pads=[1, 1, 1, 1])
    model = helper.make_model(
        helper.make_graph([node], "theirs", value[:1], value[1:], [kernel]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    out = tmp_path / "out"
    words = ["--onnx", str(out), "--target", JS, "--from", str(tmp_path / "theirs.onnx"), "--range", "0..255"]
    done = CliRunner().invoke(export, words)
    assert done.exit_code == 0, done.output
    assert (out / JS / "onnx" / "model.onnx").is_file()
