"""The mobile format: written, checked against its source, and run by Python and C++ like any other model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toolchain import GOLDEN, ort_library, run

from clusir.errors import UsageError, ValidationError
from clusir.export.formats import ort_mobile
from clusir.export.formats.ort_mobile import CONFIG_NAME, MobileReport, write_ort_mobile
from tests.golden.make.cases import load_golden


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MobileReport]:
    folder = tmp_path_factory.mktemp("mobile")
    return folder, write_ort_mobile(GOLDEN / "standin.onnx", folder)


def test_every_graph_is_converted_and_reported(mobile: tuple[Path, MobileReport]) -> None:
    folder, report = mobile
    assert [(file.graph, file.path) for file in report.files] == [
        ("whole", "standin.ort"),
        ("tile", "standin.tile.ort"),
        ("router", "standin.router.ort"),
    ]
    for file in report.files:
        assert (folder / file.path).stat().st_size == file.bytes
        assert file.max_abs <= 1e-5
        assert set(file.usability) == {"NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram"}
    assert json.loads((folder / "usability.json").read_text())["files"][1]["path"] == "standin.tile.ort"
    assert (
        "partitions" in (folder / "usability.txt").read_text() or "supported" in (folder / "usability.txt").read_text()
    )


def test_the_config_names_the_operators(mobile: tuple[Path, MobileReport]) -> None:
    folder, report = mobile
    text = (folder / CONFIG_NAME).read_text()
    assert "GlobalAveragePool" in text
    assert "FusedConv" in text  # convolution and tanh in one kernel: the optimisations were applied ahead
    assert "# - standin.ort" in text
    assert str(folder) not in text
    assert "LSTM" not in text
    assert 5 <= report.operators <= 40


def test_cpp_runs_the_mobile_files(cpp: Path, mobile: tuple[Path, MobileReport], tmp_path: Path) -> None:
    folder, _ = mobile
    case = next(case for case in load_golden(GOLDEN) if case.name == "nine_tiles_u8")
    height, width = case.pixels.shape[:2]
    (tmp_path / "in.rgb").write_bytes(case.pixels.tobytes())
    model, out = folder / "standin.ort", tmp_path / "out.f32"
    run(cpp / "clusir-raw", model, "ort", ort_library(), "2", str(width), str(height), tmp_path / "in.rgb", out)
    restored = np.fromfile(out, np.float32).reshape(case.restored.shape)
    assert np.abs(restored - case.restored).max() <= case.tolerance


def test_a_file_that_disagrees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_it(source: Path, path: Path) -> Path:
        model = onnx.load(real(source, path))
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 4:
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.01), tensor.name))
        onnx.save(model, path)
        return path

    real = ort_mobile._fix_batch
    monkeypatch.setattr(ort_mobile, "_fix_batch", break_it)
    with pytest.raises(ValidationError, match=r"standin\.ort against standin\.onnx: output restored: differs by"):
        write_ort_mobile(GOLDEN / "standin.onnx", tmp_path)


def test_the_report_is_a_section_of_markdown(mobile: tuple[Path, MobileReport]) -> None:
    _, report = mobile
    text = report.to_markdown()
    assert text.count("| `standin") == 3
    assert f"needs {report.operators} operators" in text


def test_no_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        write_ort_mobile(tmp_path / "none.onnx", tmp_path / "out")
