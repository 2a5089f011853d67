import json
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import onnx
import pytest

from clusir.calibration.balance import BalanceConfig
from clusir.errors import BudgetError, CalibrationError, UsageError
from clusir.export.precision.frontier import BudgetConfig
from clusir.export.precision.run import PrecisionConfig, PrecisionReport, make_precisions
from clusir.runtimes.runners.files import find_model, variants
from clusir.runtimes.runners.losses import read_losses


@pytest.fixture
def folder(routed: Any, tmp_path: Path) -> Path:
    for path in (routed.whole, routed.tile):
        copy(path, tmp_path / path.name)
    return tmp_path


def config_for(routed: Any, **changes: Any) -> PrecisionConfig:
    base = PrecisionConfig(
        precisions=("fp32", "fp16", "int8"),
        calibration=routed.photos,
        balance=BalanceConfig(size=12, pool=36, minimum=2),
        evaluation_crops=1,
        timing_runs=2,
    )
    return replace(base, **changes)


def test_one_call_makes_every_file_and_a_report(routed: Any, folder: Path) -> None:
    said: list[str] = []
    report = make_precisions(folder, "model", config_for(routed, budget=BudgetConfig(1.0)), progress=said.append)
    names = {"model.fp16.onnx", "model.fp16.tile.onnx", "model.int8.onnx", "model.int8.tile.onnx"}
    assert {path.name for path in report.files.values()} == names
    for name in (*names, "calibration.json", "frontier.svg"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "calibration.json").read_text())["sha256"] == report.manifest_sha256
    for backend in ("ort", "openvino"):
        assert report.losses[backend, "fp16"].worst_db < 0.05
        assert report.losses[backend, "int8"].worst_db < 0.5
        assert report.losses[backend, "int8"].flips is None, "the tile graph is given its routing"
        assert report.losses[backend, "int8 whole"].flips == 0.0
        assert any(entry.backend == backend for entry in report.advice)
    assert report.losses["ort", "int8"].agreement_db == pytest.approx(
        report.losses["openvino", "int8"].agreement_db, abs=1.0
    )
    text = report.to_markdown()
    for heading in ("Which precision to use here", "What each precision costs", "Calibration coverage", "INT8, tile"):
        assert heading in text
    json.dumps(report.to_json(), allow_nan=False)
    assert any("drawing" in line for line in said)
    kept = read_losses(variants(find_model(folder / "model.onnx")))
    assert set(kept) == {(backend, precision) for backend in ("ort", "openvino") for precision in ("fp16", "int8")}
    told = report.losses["ort", "int8"]
    assert kept["ort", "int8"].worst_db >= told.worst_db, "undamaged photos are one kind more"
    assert kept["ort", "int8"].mean_db != told.mean_db


def test_a_budget_out_of_reach_writes_the_best_and_exits_4(routed: Any, folder: Path) -> None:
    config = config_for(routed, precisions=("int8",), backends=("ort",), budget=BudgetConfig(0.0, min_int8_share=0.9))
    with pytest.raises(BudgetError, match=r"INT8 loses .* The best is written.*--max-drop") as caught:
        make_precisions(folder, "model", config, state=folder)
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.report, PrecisionReport)  # type: ignore[attr-defined]
    onnx.checker.check_model(onnx.load(folder / "model.int8.onnx"))
    lines = (folder / "quantize.journal.jsonl").read_text().splitlines()
    with pytest.raises(BudgetError):
        make_precisions(folder, "model", config, state=folder)
    assert (folder / "quantize.journal.jsonl").read_text().splitlines() == lines, "nothing was measured again"


def test_broken_calibration_falls_back_visibly(routed: Any, folder: Path) -> None:
    """The router is made to send everything to expert 0 of the first level."""
    model = onnx.load(folder / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name == "bias_0")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([500, -500], np.float32), "bias_0"))
    onnx.save(model, folder / "model.onnx")
    (folder / "model.tile.onnx").unlink()
    report = make_precisions(folder, "model", config_for(routed, precisions=("int8",), backends=("ort",)))
    assert report.coverage is not None
    assert report.coverage.under_served == ((0, 1),)
    assert "expert 1 of level 1 got 0 calibration crops, 2 are needed: its layers stay in float" in report.notes
    assert "| `encoder.0.experts.experts.1.enter.weight` | expert 1 of level 1 is under-served" in report.to_markdown()


def test_a_manifest_draws_the_same_set_again(routed: Any, folder: Path) -> None:
    config = config_for(routed, precisions=("int8",), backends=("ort",))
    first = make_precisions(folder, "model", config)
    files = {path: path.read_bytes() for path in first.files.values()}
    manifest = folder / "kept.json"
    (folder / "calibration.json").rename(manifest)
    again = make_precisions(folder, "model", replace(config, manifest=manifest, balance=BalanceConfig(minimum=2)))
    assert again.manifest_sha256 == first.manifest_sha256
    assert files == {path: path.read_bytes() for path in again.files.values()}
    with pytest.raises(CalibrationError, match="differs from the manifest's in 'seed'"):
        make_precisions(folder, "model", replace(config, manifest=manifest, seed=1))


def test_fp32_alone_needs_no_photos_and_wrong_words_are_refused(folder: Path) -> None:
    assert make_precisions(folder, "model", PrecisionConfig(calibration=folder / "nowhere")).files == {}
    with pytest.raises(UsageError, match="precision 'int4' is not one of fp32, fp16, int8, bf16"):
        PrecisionConfig(precisions=("int4",))
    with pytest.raises(UsageError, match="engine 'tensorrt' is not one of ort, nncf"):
        PrecisionConfig(engine="tensorrt")
    with pytest.raises(CalibrationError, match="does not exist"):
        make_precisions(folder, "model", PrecisionConfig(precisions=("int8",), calibration=folder / "nowhere"))


def test_nncf_keeps_the_same_things_in_float(routed: Any, folder: Path) -> None:
    config = config_for(routed, precisions=("int8",), engine="nncf", budget=BudgetConfig(max_drop_db=0.5))
    report = make_precisions(folder, "model", config)
    made = report.int8["tile"]
    assert made.engine == "nncf"
    assert len(made.quantised) >= 8
    assert {"stem.weight", "head.weight"} <= made.kept.keys()
    assert "encoder.0.chooser.describe.weight" in report.int8["whole"].kept
    assert report.losses["openvino", "int8"].worst_db < 0.5
    assert report.losses["ort", "int8 whole"].flips == 0.0


def test_bfloat16_makes_no_file_and_says_what_it_loses(routed: Any, folder: Path) -> None:
    openvino = pytest.importorskip("openvino")
    report = make_precisions(folder, "model", config_for(routed, precisions=("bf16",)))
    assert report.files == {}
    assert not (folder / "calibration.json").exists()
    found = read_losses(variants(find_model(folder / "model.onnx")))
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert found == {}
        assert any("bf16 was not measured: precision bf16: this processor" in note for note in report.notes)
        return
    assert set(found) == {("openvino", "bf16")}
    assert 0 < abs(found["openvino", "bf16"].mean_db) < 0.5


def test_bfloat16_without_openvino_is_a_note(routed: Any, folder: Path) -> None:
    report = make_precisions(folder, "model", config_for(routed, precisions=("bf16",), backends=("ort",)))
    assert any("bf16 was not measured: it is computed by OpenVINO" in note for note in report.notes)
    assert read_losses(variants(find_model(folder / "model.onnx"))) == {}


def test_the_command_takes_bfloat16_alone(routed: Any, folder: Path) -> None:
    from clusir.cli._export_session import ExportRequest, add_precisions
    from clusir.export.formats.bundle import ExportReport

    request = ExportRequest(
        folder=folder, stem="model", bundle=True, weights="inside", given=frozenset(), openvino=False, ort_mobile=False,
        checkpoint=None, seed=0, precision=("fp32", "bf16"), router="dense", dft="auto", dynamic=False,
        tile_px=32, halo_px=4, backends=("ort",), device="cpu", engine="ort", calibration=routed.photos,
        manifest=None, max_drop=None, time_limit=None, input_shape="1x3x32x32", check_passes=False, as_json=False,
    )  # fmt: skip
    report = ExportReport()

    def validate(paths: Any) -> Any:
        raise AssertionError(f"there is no file to compare: {paths}")

    add_precisions(request, ("bf16",), validate, lambda text: None, folder, "model", report)
    assert (report.parity, report.variants) == ([], [])
    assert (folder / "model.losses.json").is_file()
    assert "bf16" in "".join(report.markdown)
