"""The pipeline: which pass is blamed, what is promoted when, and what the passes refuse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from graphs_under_test import shallow
from onnx import TensorProto, helper

from clusir.errors import ExportError, ModelFormatError, UsageError, ValidationError
from clusir.export.base import PassResult, Pipeline
from clusir.export.experts.dense import DensifyExperts
from clusir.export.formats import bundle
from clusir.export.formats.bundle import Destination, export_bundle
from clusir.export.passes.simplify import AttachMetadata, CheckStandard
from clusir.export.pipeline import ExportConfig, describe
from clusir.export.staging import staged
from clusir.export.validate.files import ParityPlan
from clusir.export.validate.tolerances import tolerance
from clusir.network.checkpoint import random_model
from clusir.network.model import CONFIGS, ClusIR
from clusir.spec import ModelSpec


@dataclass
class Add:
    """A pass on integers, to test the pipeline without a model."""

    name: str
    amount: int
    limit: int = 100

    def requires(self, model: int) -> None:
        if model < 0:
            raise ExportError("the number is negative")

    def apply(self, model: int) -> PassResult[int]:
        return PassResult(model + self.amount, self.amount != 0, (f"added {self.amount}",))

    def ensures(self, model: int) -> None:
        if model > self.limit:
            raise ExportError(f"{model} is above {self.limit}")


def test_passes_run_in_order_and_are_recorded() -> None:
    seen: list[str] = []
    pipeline = Pipeline([Add("first", 1), Add("nothing", 0), Add("last", 2)], lambda name, _: seen.append(name))
    assert pipeline.run(0) == 3
    assert [(r.name, r.modified) for r in pipeline.records] == [("first", True), ("nothing", False), ("last", True)]
    assert seen == ["first", "last"]


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    with pytest.raises(ExportError, match=r"pass second failed: 5 is above 3 \(passes before it: first\)"):
        Pipeline([Add("first", 1), Add("second", 4, limit=3)]).run(0)
    with pytest.raises(ExportError, match=r"pass only failed: the number is negative \(passes before it: none\)"):
        Pipeline([Add("only", 1)]).run(-1)


def test_nothing_is_promoted_when_a_step_fails(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("the old one")

    def fail() -> None:
        with staged(tmp_path, keep=["why.json"]) as stage:
            (stage / "model.onnx").write_text("the new one")
            (stage / "why.json").write_text("{}")
            raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        fail()
    assert (tmp_path / "model.onnx").read_text() == "the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "why.json"]


def test_a_failed_validation_leaves_only_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValidationError("model.onnx disagrees")

    monkeypatch.setattr(bundle, "check_rows", refuse)
    config = ExportConfig(tile_px=32, halo_px=8, graphs=("router",))
    model = random_model(shallow(CONFIGS["tiny"]))
    with pytest.raises(ValidationError, match="disagrees"):
        export_bundle(model, Destination(tmp_path), config, ParityPlan(backends=("ort",), batches=(1,)))
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["failure"] == "model.onnx disagrees"


def test_graphs_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match="graph 'wohle' is not one of whole, tile, router"):
        ExportConfig(graphs=("wohle",))
    with pytest.raises(UsageError, match="graph '' is not one of"):
        ExportConfig(graphs=())


def test_training_mode_is_refused(tiny: ClusIR) -> None:
    tiny.train()
    try:
        with pytest.raises(ExportError, match="training mode"):
            Pipeline([DensifyExperts()]).run(tiny)
    finally:
        tiny.eval()


def graph(*nodes: onnx.NodeProto, domain: str = "") -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 4, 1]) for n in ("image", "restored")]
    return helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:]), opset_imports=opsets, ir_version=9)


def test_graphs_that_are_not_plain_onnx_are_refused() -> None:
    check = CheckStandard()
    with pytest.raises(ExportError, match=r"outside standard ONNX: com\.acme::Blur"):
        check.apply(graph(helper.make_node("Blur", ["image"], ["restored"], domain="com.acme"), domain="com.acme"))
    with pytest.raises(ExportError, match="random numbers"):
        check.apply(graph(helper.make_node("RandomNormalLike", ["image"], ["restored"])))
    dft = graph(
        helper.make_node("DFT", ["image"], ["spectrum"], axis=1),
        helper.make_node("ReduceSum", ["spectrum"], ["sum"]),
        helper.make_node("Add", ["image", "sum"], ["restored"]),
    )
    with pytest.raises(ExportError, match="1 DFT operators are left"):
        check.apply(dft)
    assert CheckStandard(allow_dft=True).apply(dft).modified is False
    assert CheckStandard().apply(graph(helper.make_node("Relu", ["image"], ["restored"]))).modified is False


def test_metadata_is_written_and_read_back(tiny: ClusIR) -> None:
    spec = describe(tiny, ExportConfig(tile_px=64, halo_px=8))
    model = AttachMetadata(spec).apply(graph(helper.make_node("Relu", ["image"], ["restored"]))).model
    assert ModelSpec.from_metadata({p.key: p.value for p in model.metadata_props}) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": "sparse"}, "router form 'sparse' is not one of dense, conditional"),
        ({"dft": "fft"}, "DFT form 'fft' is not one of"),
        ({"tile_px": 32, "halo_px": 16}, "wider than two halos"),
    ],
)
def test_wrong_configs_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig(**arguments)  # type: ignore[arg-type]


def test_a_tile_that_does_not_fit_the_network_is_refused(tiny: ClusIR) -> None:
    with pytest.raises(UsageError, match="tile 72 px is not a multiple of 16"):
        describe(tiny, ExportConfig(tile_px=72))


def test_a_precision_without_a_tolerance_is_refused() -> None:
    assert tolerance("fp32").max_abs == 1e-4
    assert tolerance("fp32", "cuda").psnr_db == 80.0
    with pytest.raises(UsageError, match="no tolerance for precision 'int4'"):
        tolerance("int4")


def test_metadata_that_lies_is_refused() -> None:
    good = ModelSpec().to_metadata()
    for key, value, message in (
        ("clusir.spec_version", "99", "spec version 99"),
        ("clusir.tile_px", '"big"', "cannot be read"),
        ("clusir.halo_px", "500", "leaves no core"),
        ("clusir.size", '{"static_px": 100}', "does not fit the size rule"),
        ("clusir.experts", "[4]", "do not name the same"),
        ("clusir.tile_px", "[" * 100_000, "cannot be read"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            ModelSpec.from_metadata({**good, key: value})
    with pytest.raises(ModelFormatError, match="no clusir metadata"):
        ModelSpec.from_metadata({"producer": "someone"})
