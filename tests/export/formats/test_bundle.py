"""What an export puts in place: only what was compared, all of it or nothing, and never over somebody else's file."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import standin_bundle
from standin_bundle import GOLDEN, GRAPHS, NAMES, Edit, spec_of

from clusir.cli import _precision
from clusir.cli._export_session import ExportRequest, further_steps
from clusir.errors import BudgetError, ExportError, UsageError, ValidationError
from clusir.export.formats import bundle
from clusir.export.formats.artefacts import artefacts
from clusir.export.formats.bundle import Destination, ExportReport, export_bundle
from clusir.export.pipeline import ExportConfig, GraphRecord
from clusir.export.precision import run as precision_run
from clusir.export.precision.loss import QualityLoss
from clusir.export.precision.run import PrecisionReport
from clusir.export.quantize.steps import write_atomically
from clusir.export.staging import staged
from clusir.export.validate.files import ParityPlan
from clusir.runtimes.runners.base import Array

CONFIG = ExportConfig(tile_px=48, halo_px=8)
PLAN = ParityPlan(("ort",), batches=(1,), threads=1)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of an export are copies of the stand-in's."""

    def write_graphs(_: Any, folder: Path, stem: str, *__: Any) -> list[GraphRecord]:
        made = []
        for graph, name in NAMES.items():
            path = folder / name.replace("model", stem, 1)
            shutil.copy(GOLDEN / GRAPHS[graph], path)
            made.append(GraphRecord(graph, path, (), path.stat().st_size))
        return made

    standin_bundle.stand_in(monkeypatch)
    monkeypatch.setattr(bundle, "write_graphs", write_graphs)
    monkeypatch.setattr(bundle, "describe", lambda *_: spec_of(GOLDEN / GRAPHS["whole"]))


def export(to: Destination, *steps: Callable[[Path, str, ExportReport], None]) -> ExportReport:
    return export_bundle(None, to, CONFIG, PLAN, more=steps)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def strict(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def request(folder: Path, stem: str = "model", **options: Any) -> ExportRequest:
    given = {
        "openvino": False, "ort_mobile": False, "checkpoint": None, "seed": 0, "precision": ("fp32",),
        "router": "dense", "dft": "auto", "dynamic": False, "tile_px": 48, "halo_px": 8, "backends": ("ort",),
        "device": "cpu", "engine": "ort", "calibration": None, "manifest": None, "max_drop": None, "time_limit": None,
        "input_shape": "1x3x128x128", "check_passes": False, "as_json": False, "bundle": stem == "model",
        "given": frozenset(options), "weights": None,
    }  # fmt: skip
    return ExportRequest(folder=folder, stem=stem, **(given | options))


def test_the_manifest_names_every_file_and_is_whole(tmp_path: Path) -> None:
    report = export(Destination(tmp_path))
    listed = strict(tmp_path / "manifest.json")["files"]
    assert sorted([*listed, "manifest.json"]) == names(tmp_path) == report.files
    assert {"report.json", "report.html", "golden/noise.npz", "model.tile.onnx"} <= set(listed)
    assert len(artefacts(str(tmp_path))) == 3
    assert strict(tmp_path / "report.json")["files"] == report.files


def test_a_report_is_json_also_when_nan_broke_the_export(tmp_path: Path) -> None:
    def spoil(stage: Path, stem: str, report: ExportReport) -> None:
        path = stage / f"{stem}.onnx"
        Edit(path).output("restored", "Mul", float("nan"))
        report.parity += bundle.validate_files(None, [path], PLAN)  # type: ignore[arg-type]
        bundle.check_rows(report.parity)

    with pytest.raises(ValidationError, match="not finite"):
        export(Destination(tmp_path), spoil)
    assert names(tmp_path) == ["report.json"]
    written = strict(tmp_path / "report.json")
    assert {row["psnr_db"] for row in written["parity"] if not row["ok"]} == {"-inf"}
    assert {row["max_abs"] for row in written["parity"] if not row["ok"]} == {"inf"}

    def say(*_: object) -> None:
        raise ExportError("the value was Infinity, refused")

    with pytest.raises(ExportError):
        export(Destination(tmp_path), say)
    assert strict(tmp_path / "report.json")["failure"] == "the value was Infinity, refused"


@pytest.mark.parametrize("graph", ["whole", "tile", "router"])
def test_a_graph_that_was_not_compared_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    plain = bundle.validate_files

    def forgetful(model: Any, paths: list[Path], *more: Any) -> Any:
        return plain(model, [path for path in paths if path.name != NAMES[graph]], *more)

    monkeypatch.setattr(bundle, "validate_files", forgetful)
    with pytest.raises(ValidationError, match=f"{NAMES[graph]}: nothing was compared"):
        export(Destination(tmp_path))
    assert names(tmp_path) == ["report.json"]


def foreign(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".onnx"):
        model = onnx.load(GOLDEN / GRAPHS["whole"])
        del model.metadata_props[:]
        onnx.save(model, folder / name)
    else:
        (folder / name).write_text('{"mine": 1}')


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "report.json", "golden/noise.npz", "report.html", "model.onnx", "model.tile.onnx"],
)
def test_files_that_no_export_wrote_are_not_replaced(tmp_path: Path, name: str) -> None:
    foreign(tmp_path, name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UsageError, match=r"is there and was not written by clusir-export; move it away"):
        export(Destination(tmp_path))
    assert (tmp_path / name).read_bytes() == before
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "model.onnx", "model.router.onnx"])
def test_files_in_the_way_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    foreign(tmp_path, name)
    monkeypatch.setattr(bundle, "write_graphs", lambda *_: pytest.fail("the network was exported first"))
    with pytest.raises(UsageError, match=r"is there and was not written by clusir-export"):
        export(Destination(tmp_path))


def test_a_named_file_brings_its_own_graphs_and_report_and_nothing_else(tmp_path: Path) -> None:
    for name in ("manifest.json", "report.json", "golden/noise.npz", "report.html"):
        foreign(tmp_path, name)
    theirs = names(tmp_path)
    for stem in ("model", "my.model", "a[1]"):
        export(Destination(tmp_path, stem, bundle=False))
        mine = [f"{stem}.onnx", f"{stem}.report.json", f"{stem}.router.onnx", f"{stem}.tile.onnx"]
        assert names(tmp_path) == sorted([*theirs, *mine])
        assert all((tmp_path / name).read_text() == '{"mine": 1}' for name in theirs)
        for name in mine:
            (tmp_path / name).unlink()


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    first = export(Destination(tmp_path)).files
    (tmp_path / "model.onnx").write_bytes((GOLDEN / "standin_k2.onnx").read_bytes())
    assert export(Destination(tmp_path)).files == first
    assert (tmp_path / "model.onnx").read_bytes() == (GOLDEN / GRAPHS["whole"]).read_bytes()


def test_variants_of_a_former_graph_are_no_variants_of_the_new_one(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "standin_k2.onnx", tmp_path / "model.onnx")
    shutil.copy(GOLDEN / "standin_k2.onnx", tmp_path / "model.int8.onnx")
    foreign(tmp_path, "model.fp16.onnx")
    to = Destination(tmp_path, bundle=False)
    assert export(to).retired == ["model.int8.onnx"]
    assert (tmp_path / "model.int8.onnx.stale").is_file()
    assert not (tmp_path / "model.int8.onnx").exists()
    assert (tmp_path / "model.fp16.onnx").is_file()  # nothing of ours
    shutil.move(tmp_path / "model.int8.onnx.stale", tmp_path / "model.int8.onnx")
    assert export(to).retired == []  # the same graph again: its variants are still right


def variant(folder: Path, stem: str, precision: str, spoil: bool) -> PrecisionReport:
    """What make_precisions would leave: lower precisions of the whole and the tile graph."""
    made = PrecisionReport()
    for graph, suffix in (("tile", ".tile"), ("whole", "")):
        path = folder / f"{stem}.{precision}{suffix}.onnx"
        shutil.copy(folder / f"{stem}{suffix}.onnx", path)
        Edit(path).spec(precision=precision)
        if spoil:
            Edit(path).output("restored", "Mul", -1.0)
        made.files[precision, graph] = path
    return made


def steps_for(
    monkeypatch: pytest.MonkeyPatch, asked: ExportRequest, precision: str, *, spoil: bool, missed: bool = False
) -> list[Any]:
    def make(folder: Path, stem: str, *_: Any, **__: Any) -> PrecisionReport:
        (folder / "calibration.json").write_text("{}")
        made = variant(folder, stem, precision, spoil)
        if missed:
            error = BudgetError("INT8 loses too much")
            error.report = made  # type: ignore[attr-defined]
            raise error
        return made

    monkeypatch.setattr(precision_run, "make_precisions", make)
    return further_steps(asked, PLAN, None, lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("stem", ["plain", "my.model", "a[1]", "int8", "fp16.int8"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_variant_is_compared_whatever_the_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str, precision: str
) -> None:
    asked = request(tmp_path, stem, precision=("fp32", precision))
    to = asked.to
    report = export(to, *steps_for(monkeypatch, asked, precision, spoil=False))
    compared = {row.artefact for row in report.parity}
    assert {f"{stem}.{precision}.onnx", f"{stem}.{precision}.tile.onnx"} <= compared
    assert {f"{stem}.{precision}.onnx", f"{stem}.calibration.json"} <= set(report.files)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValidationError, match=r"disagrees with the reference"):
        export(to, *steps_for(monkeypatch, asked, precision, spoil=True))
    assert names(tmp_path) == [f"{stem}.report.json"]


def test_of_a_missed_budget_the_best_is_kept_with_its_graphs_once_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, precision=("int8",))
    with pytest.raises(BudgetError, match="loses too much"):
        export(asked.to, *steps_for(monkeypatch, asked, "int8", spoil=False, missed=True))
    kept = ["model.int8.onnx", "model.int8.tile.onnx", *NAMES.values(), "report.json"]
    kept += ["model.int8.onnx.data", "model.onnx.data"]
    assert names(tmp_path) == sorted(kept)
    written = strict(tmp_path / "report.json")
    assert written["failure"] == "INT8 loses too much"
    assert {row["artefact"] for row in written["parity"]} >= {"model.int8.onnx", "model.int8.tile.onnx"}
    shutil.rmtree(tmp_path)
    with pytest.raises(ValidationError, match=r"model\.int8.* disagrees"):
        export(asked.to, *steps_for(monkeypatch, asked, "int8", spoil=True, missed=True))
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("stem", ["a[1]"])
def test_openvino_files_are_compared_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str) -> None:
    from clusir.export.formats import openvino

    asked = request(tmp_path, stem, openvino=True)
    report = export(asked.to, *further_steps(asked, PLAN, None, lambda _: None))  # type: ignore[arg-type]
    written = [f"openvino/{stem}{graph}.xml" for graph in ("", ".router", ".tile")]
    assert [name for name in report.files if name.endswith(".xml")] == sorted(written)
    compared = {(row.artefact, row.runner) for row in report.parity}
    assert compared >= {(f"{stem}{graph}.xml", "openvino:cpu") for graph in ("", ".router", ".tile")}
    shutil.rmtree(tmp_path)
    plain = openvino.write_openvino

    def spoilt(models: list[Path], folder: Path) -> list[Path]:
        Edit(models[0]).output("restored", "Mul", -1.0)
        return plain(models, folder)

    monkeypatch.setattr(openvino, "write_openvino", spoilt)
    with pytest.raises(ValidationError, match=r"\.xml on openvino:cpu disagrees"):
        export(asked.to, *further_steps(asked, PLAN, None, lambda _: None))  # type: ignore[arg-type]
    assert names(tmp_path) == [asked.to.report]


def test_all_files_are_moved_or_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").mkdir()  # a folder where the last file should go

    def write() -> None:
        with staged(tmp_path) as stage:
            for name in "abc":
                (stage / name).write_text(f"new {name}")

    with pytest.raises(ExportError, match=r"c cannot be written .* nothing was put in place"):
        write()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old a"


def test_nothing_is_moved_before_the_block_has_ended_well(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "x").write_text("x")
        assert names(tmp_path) == [f"{stage.name}/.lock", f"{stage.name}/sub/x"]
    assert names(tmp_path) == ["sub/x"]


def test_the_folder_of_a_killed_export_is_removed_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".clusir-dead"
    dead.mkdir()
    (dead / ".lock").write_text("")
    (dead / "model.onnx").write_text("half")
    (tmp_path / ".clusir-notes").mkdir()  # no lock: nothing that an export has made
    with staged(tmp_path) as outer:
        assert not dead.exists()
        with staged(tmp_path):
            assert outer.exists()
        assert outer.exists()
    assert [p.name for p in tmp_path.iterdir()] == [".clusir-notes"]


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    model = onnx.load(GOLDEN / GRAPHS["router"])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(40):
                write_atomically(model, tmp_path / "model.onnx")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["model.onnx"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="folder cannot be written"):
        write_atomically(model, tmp_path / "folder")


def test_quality_of_a_variant_is_written_even_where_it_is_infinite() -> None:
    made = PrecisionReport(losses={("ort", "int8"): QualityLoss({"noise": float("inf")}, -float("inf"))})
    text = bundle.plain_json.dumps(made.to_json())
    assert json.loads(text)["losses"]["ort:int8"]["worst_db"] == "inf"


def test_options_of_a_request_that_do_nothing_are_refused(tmp_path: Path) -> None:
    def refuse(asked: ExportRequest) -> None:
        _precision.refuse_idle_options(vars(asked), asked.given)

    for options, why in (
        ({"max_drop": 0.1}, "--max-drop does nothing without --precision int8"),
        ({"calibration": tmp_path}, "--calibration does nothing without --precision fp16 or int8"),
        ({"manifest": tmp_path}, "--manifest does nothing without --precision fp16 or int8"),
        ({"engine": "nncf"}, "--engine does nothing without --precision int8"),
        ({"engine": "nncf", "precision": ("fp16",)}, "--engine does nothing without --precision int8"),
        ({"time_limit": 5.0}, "--time-limit does nothing without --precision int8"),
        ({"time_limit": 5.0, "precision": ("int8",)}, "--time-limit does nothing without --max-drop"),
        (
            {"time_limit": 5.0, "max_drop": 0.1, "precision": ("int8",), "engine": "nncf"},
            "--time-limit does nothing with --engine nncf",
        ),
        ({"seed": 7}, "--seed does nothing without a random: checkpoint or calibration"),
    ):
        with pytest.raises(UsageError, match=why):
            refuse(request(tmp_path, **options))
    for options in (
        {},
        {"max_drop": 0.1, "time_limit": 5.0, "precision": ("fp32", "int8"), "seed": 3, "engine": "ort"},
        {"calibration": tmp_path, "precision": ("fp16",)},
        {"seed": 3, "checkpoint": "random:tiny"},
    ):
        refuse(request(tmp_path, **options))


def test_runtimes_that_cannot_serve_an_option_make_way_unless_they_were_named(tmp_path: Path) -> None:
    both = ("ort", "openvino")
    for options in ({"dft": "op"}, {"device": "cuda"}):
        name = next(iter(options))
        default = request(tmp_path, **options, backends=both, given=frozenset([name]))
        assert default.runtimes == ("ort",)
        with pytest.raises(UsageError, match=f"--{name} .* with --backends openvino"):
            _ = request(tmp_path, **options, backends=both).runtimes
    assert request(tmp_path, backends=both).runtimes == both


def test_no_array_of_a_report_is_lost() -> None:
    """Rows hold NumPy's numbers where a comparison gave them."""
    values: Array = np.array([1.5], np.float32)
    assert json.loads(bundle.plain_json.dumps({"a": values[0]})) == {"a": 1.5}
