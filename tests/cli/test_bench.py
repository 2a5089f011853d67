"""clusir-bench: the arithmetic, the turns, the memory of a process of its own, the command and its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clusir.cli.bench import main
from clusir.errors import ClusirError
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.machine.fingerprint import fingerprint
from clusir.runtimes.machine.measure import (
    Case,
    Measurement,
    Percentiles,
    bench_cases,
    peak_memory_mib,
    write_photo,
)
from clusir.runtimes.machine.table import COLUMNS, rows, to_markdown
from tests import needs

MODEL = str(Path(__file__).parents[1] / "golden" / "standin.onnx")


def _case(**changes: object) -> Case:
    values = {"model": MODEL, "backend": "ort", "device": "cpu", "precision": "fp32", "size_px": 48, "threads": 1}
    return Case(**{**values, **changes})  # type: ignore[arg-type]


def test_percentiles_are_milliseconds_of_sorted_seconds() -> None:
    p = Percentiles.of([i / 1000 for i in range(100, -1, -1)])
    assert (p.count, p.p50, p.p95, p.p99, p.mean) == pytest.approx((101, 50, 95, 99, 50))


def test_functions_take_turns_and_warmup_is_apart() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}  # type: ignore[misc]
    times = measure_alternating(functions, runs=3, warmup=1, pause_s=0)
    assert "".join(calls) == "abc" + "cba" + "abc" + "cba"
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_of_two_functions_is_found() -> None:
    times = measure_alternating({"one": lambda: time.sleep(0.004), "three": lambda: time.sleep(0.012)}, 9, pause_s=0)
    assert np.median(times["three"]) > 1.5 * np.median(times["one"])  # a busy machine only adds to both


def test_rates_follow_from_the_times() -> None:
    m = Measurement(_case(size_px=1000), total=Percentiles.of([0.5]), infer_ms=250.0)
    assert m.images_per_s == pytest.approx(2)
    assert m.megapixels_per_s == pytest.approx(4)


def test_cases_are_measured_whole_and_in_parts() -> None:
    good, bad = bench_cases([_case(), _case(precision="int8")], runs=2, warmup=1)
    assert good.total is not None
    assert good.total.count == 2
    assert good.name == "ort:cpu"
    assert good.placement["CPUExecutionProvider"] > 0
    assert 0 < good.decode_ms + good.infer_ms + good.encode_ms < 3 * good.total.p99
    assert good.infer_ms > 0
    assert "int8" in bad.error
    assert bad.total is None


def test_two_models_of_one_configuration_keep_their_rows() -> None:
    other = str(Path(MODEL).with_name("standin_k2.onnx"))
    first, second = bench_cases([_case(), _case(model=other)], runs=1, warmup=0)
    assert first.total is not None
    assert second.total is not None
    assert rows([first, second])[1][1] == "standin_k2.onnx"


def test_peak_memory_is_that_of_the_child_alone() -> None:
    ballast = np.ones(300 << 20, np.uint8)  # 300 MiB here must not be seen there
    peak = peak_memory_mib(_case())
    assert ballast[-1] == 1
    assert 30 < peak < 280


def test_peak_memory_run_that_fails_says_why() -> None:
    with pytest.raises(ClusirError, match="no such file"):
        peak_memory_mib(_case(model="/nowhere.onnx"))


def test_photo_is_a_picture_of_the_size_asked_for(tmp_path: Path) -> None:
    from PIL import Image

    write_photo(tmp_path / "a.png", 33)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (33, 33)
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100


def test_table_compares_with_the_first_row_of_its_size() -> None:
    total = Percentiles.of([0.1])
    made = [
        Measurement(_case(size_px=64), "ort:cpu", total, infer_ms=20.0),
        Measurement(_case(size_px=64, backend="openvino"), "openvino:cpu", total, infer_ms=10.0, peak_mib=123.4),
        Measurement(_case(size_px=128), "ort:cpu", total, infer_ms=80.0),
        Measurement(_case(size_px=128, precision="int8"), error="no | such file"),
    ]
    relative = COLUMNS.index("infer, relative")
    assert [row[relative] for row in rows(made)] == ["1.00", "0.50", "1.00", ""]
    text = to_markdown(made, fingerprint(1), 7)
    assert "no \\| such file" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {len(COLUMNS) + 1}
    assert "1 threads" in text


def test_command_writes_markdown_and_json(tmp_path: Path) -> None:
    arguments = ["--model", MODEL, "--backend", "ort", "--size", "32,80", "--runs", "2", "--warmup", "0"]
    done = CliRunner().invoke(main, [*arguments, "--threads", "1", "--no-memory", "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [m["case"]["size_px"] for m in data["measurements"]] == [32, 80]
    assert data["measurements"][0]["total"]["count"] == 2
    assert data["machine"]["threads"] == 1
    assert json.loads((tmp_path / "bench.json").read_text()) == data
    assert "| 80 | standin.onnx | fp32 | ort:cpu |" in (tmp_path / "bench.md").read_text()


def test_quality_is_measured_beside_latency(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", 48)
    arguments = ["--model", MODEL, "--backend", "ort", "--size", "16", "--runs", "1", "--warmup", "0", "--no-memory"]
    done = CliRunner().invoke(main, [*arguments, "--quality", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)["quality"][0]
    assert table["model"].endswith("fp32, ort:cpu")
    assert all(np.isfinite(row["psnr_db"]) for row in table["rows"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--backend", "tpu"], 2, "ort, openvino, torch"),
        (["--size", "0"], 2, "from 1 to 20000"),
        (["--size", "big"], 2, "'big' is not allowed"),
        (
            ["--model", MODEL, "--precision", "int8", "--backend", "ort"],
            2,
            "clusir-export --onnx OUT --precision fp32,int8",
        ),
        (["--model", "/nowhere.onnx"], 2, "no model file fits"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(arguments: list[str], code: int, words: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code
    assert words in done.stderr


def test_a_named_device_that_is_absent_fails_its_rows() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        needs.skip("no cuda")
    done = CliRunner().invoke(main, ["--model", MODEL, "--device", "cuda", "--size", "16", "--no-memory"])
    assert done.exit_code == 3
    assert "clusir[gpu]" in done.stderr


@pytest.mark.parametrize("name", ["doctor", "bench"])
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys; from clusir.cli.{name} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'openvino', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip().endswith("[]")


def test_clusters_are_reported_and_drawn(tmp_path: Path, write_photos) -> None:
    photos = write_photos(tmp_path / "photos", 1, size=256)
    out = tmp_path / "out"
    arguments = ["--clusters", str(photos), "--backend", "ort", "--threads", "1", "-o", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    data = json.loads((out / "clusters.json").read_text())
    for level in data["levels"]:
        for shares in level["clusters"].values():
            assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert any(label != "unused" for label in level["labels"])
    assert (out / "clusters.svg").read_text().startswith("<svg")


def test_clusters_of_photos_that_are_too_small_are_refused(tmp_path: Path, write_photos) -> None:
    done = CliRunner().invoke(main, ["--clusters", str(write_photos(tmp_path, 1, size=64)), "--backend", "ort"])
    assert done.exit_code == 2
    assert "no photo of at least 256 px" in done.stderr


def test_clusters_of_another_model_take_crops_of_its_size(tmp_path: Path, write_photos) -> None:
    standin = Path(__file__).parents[1] / "golden" / "standin.onnx"
    photos = write_photos(tmp_path, 1, size=88)
    done = CliRunner().invoke(main, ["--clusters", str(photos), "--model", str(standin), "--backend", "ort", "--json"])
    assert done.exit_code == 0, done.output
    assert "1 photos, 48 px" in json.loads(done.stdout)["about"]


def test_clusters_and_quality_at_once_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--clusters", str(tmp_path), "--quality", str(tmp_path)])
    assert done.exit_code == 2
    assert "two measurements" in done.stderr


def test_baselines_without_quality_are_refused() -> None:
    done = CliRunner().invoke(main, ["--baselines"])
    assert done.exit_code == 2
    assert "--quality" in done.stderr


def test_an_empty_quality_folder_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured before the folder was looked at")

    monkeypatch.setattr("clusir.runtimes.machine.measure.bench_cases", measured)
    done = CliRunner().invoke(main, ["--quality", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no picture" in done.stderr
