"""Lower precisions of brought networks: made, measured, compared, and put in place together or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from clusir.calibration.balance import BalanceConfig
from clusir.errors import BudgetError, UsageError, ValidationError
from clusir.export import adopt as module
from clusir.export.adopt import Adoption, AdoptionConfig, adopt
from clusir.export.module import export_module
from clusir.export.precision.frontier import BudgetConfig
from clusir.export.precision.run import PrecisionConfig
from clusir.runtimes import open_runner

FEW = PrecisionConfig(
    ("fp32", "fp16", "int8"),
    balance=BalanceConfig(size=6, pool=12, minimum=1),
    evaluation_crops=1,
    timing_runs=1,
    backends=("ort",),
)


def network(path: Path, scale: int, channels: int) -> Path:
    """Two convolutions of 16 channels between one that spreads the picture and one that enlarges it."""
    rng = np.random.default_rng(0)
    shapes = {"k1": (16, channels), "k2": (16, 16), "k3": (channels * scale**2, 16)}
    kernels = {name: rng.normal(0, 0.02, (*shape, 3, 3)).astype(np.float32) for name, shape in shapes.items()}
    kernels["k1"][:channels, :, 1, 1] += np.eye(channels, dtype=np.float32)
    kernels["k2"][range(16), range(16), 1, 1] += 1
    for index in range(channels * scale**2):
        kernels["k3"][index, index // scale**2, 1, 1] += 1
    nodes = [
        helper.make_node("Conv", [source, kernel], [target], pads=[1, 1, 1, 1])
        for source, kernel, target in (("x", "k1", "a"), ("a", "k2", "b"), ("b", "k3", "c"))
    ]
    nodes.append(helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=scale, mode="CRD"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, channels, None, None]) for n in "xy"]
    constants = [numpy_helper.from_array(kernel, name) for name, kernel in kernels.items()]
    graph = helper.make_graph(nodes, "theirs", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def adopted(source: Path, config: PrecisionConfig = FEW) -> Adoption:
    told = AdoptionConfig(tile_px=64, backends=("ort",), precision=config)
    return adopt(source, source.with_name("ours.onnx"), told)


@pytest.mark.parametrize(("scale", "channels"), [(1, 3), (4, 3), (2, 1)])
def test_precisions_of_an_adopted_file(tmp_path: Path, scale: int, channels: int) -> None:
    made = adopted(network(tmp_path / "theirs.onnx", scale, channels))
    report = made.placed.report
    assert report is not None
    graphs = {"ours.onnx", "ours.fp16.onnx", "ours.int8.onnx"}
    beside = {f"ours.{name}" for name in ("calibration.json", "losses.json", "frontier.svg", "report.json")}
    assert set(made.placed.files) == graphs | beside
    assert {row[0] for row in made.placed.compared} == graphs - {"ours.onnx"}
    loss = report.losses["ort", "int8"]
    assert set(loss.drop_db) == ({"shrunk", "smooth"} if scale > 1 else set(loss.drop_db) - {"shrunk", "smooth"})
    assert 30 < loss.agreement_db < report.losses["ort", "fp16"].agreement_db
    picture = np.full((1, channels, 16, 24), 0.5, np.float32)
    answers = {}
    for name in graphs:
        with open_runner(tmp_path / name, "ort", "cpu", 1) as runner:
            assert (runner.spec.scale, runner.spec.channels) == (scale, channels)
            answers[name] = runner.run({"image": picture})["restored"]
            assert answers[name].shape == (1, channels, scale * 16, scale * 24)
    assert np.abs(answers["ours.int8.onnx"] - answers["ours.onnx"]).max() > 0
    assert any(t.data_type == TensorProto.INT8 for t in onnx.load(tmp_path / "ours.int8.onnx").graph.initializer)
    told = json.loads((tmp_path / "ours.report.json").read_text())
    assert set(told["precisions"]["files"].values()) == graphs - {"ours.onnx"}
    assert json.loads((tmp_path / "ours.calibration.json").read_text())["samples"]
    if scale == 1:
        again = adopted(tmp_path / "theirs.onnx", replace(FEW, precisions=("fp32",)))
        assert again.placed.files == ("ours.onnx",)


def test_precisions_of_a_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 1, 3, padding=1),
    ]
    out = tmp_path / "ours.onnx"
    made = export_module(nn.Sequential(*layers).eval(), "1x1x32x32", out, backends=("ort",), precision=FEW)
    assert {"ours.onnx", "ours.fp16.onnx", "ours.int8.onnx", "ours.report.json"} <= set(made.placed.files)
    assert {row[0] for row in made.placed.compared} == {"ours.fp16.onnx", "ours.int8.onnx"}
    assert made.placed.report is not None
    assert made.placed.report.losses["ort", "int8"].agreement_db > 30


def test_nothing_is_put_in_place_that_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP16 files of which a runtime makes something else are refused, and the float32 file with them."""
    real = module.compare_pictures

    def spoiled(path: Path, *rest: object, **more: object) -> object:
        if ".fp16." in path.name:
            model = onnx.load(path)
            for node in model.graph.node:
                if node.op_type == "DepthToSpace":
                    node.attribute[[a.name for a in node.attribute].index("mode")].s = b"DCR"
            onnx.save(model, str(path))
        return real(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "compare_pictures", spoiled)
    with pytest.raises(ValidationError, match="at least 60 are needed"):
        adopted(network(tmp_path / "theirs.onnx", 2, 3), replace(FEW, precisions=("fp16",)))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


def test_a_missed_budget_keeps_the_best_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BudgetConfig, "holds", lambda budget, loss: False)
    budget = BudgetConfig(0.0, min_int8_share=1.0)
    with pytest.raises(BudgetError, match="INT8 loses"):
        adopted(network(tmp_path / "theirs.onnx", 2, 3), replace(FEW, precisions=("int8",), budget=budget))
    assert {"ours.onnx", "ours.int8.onnx", "ours.report.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "INT8 loses" in json.loads((tmp_path / "ours.report.json").read_text())["failure"]


def test_files_in_the_way_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "ours.int8.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"ours\.int8\.onnx is there"):
        adopted(network(tmp_path / "theirs.onnx", 1, 3))
    assert not (tmp_path / "ours.onnx").exists()
