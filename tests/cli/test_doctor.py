"""clusir-doctor: the probe network, the judgement, the lines that mend, and the command itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clusir.runtimes.machine import diagnose as module
from clusir.runtimes.machine.diagnose import Diagnosis, cuda_advice, diagnose
from clusir.runtimes.machine.fingerprint import describe, fingerprint
from clusir.runtimes.machine.probe import PROBE_MODEL, Probe, expected_output, probe
from tests import needs

MACHINE = {**fingerprint(), "gpus": [], "packages": {"onnxruntime": "1.0"}, "cpu_features": ["AVX2", "VNNI"]}
CARD = {"name": "Card", "driver": "1", "memory": "2 GiB"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "tiny.onnx").write_bytes(b"0")
    return tmp_path


def test_probe_model_is_the_network_it_claims_to_be() -> None:
    import onnx

    made = onnx.load_from_string(PROBE_MODEL)
    onnx.checker.check_model(made)
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
    weight = onnx.numpy_helper.to_array(made.graph.initializer[0])
    np.testing.assert_array_equal(weight, np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3))


def test_expected_output_is_that_of_a_runtime() -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(PROBE_MODEL, providers=["CPUExecutionProvider"])
    image = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_allclose(expected_output(), session.run(None, {"x": image})[0], atol=1e-5)


def test_a_provider_that_falls_back_does_not_count_as_running() -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        needs.skip("no cuda")
    assert probe("ort:CPUExecutionProvider").ok
    done = probe("ort:CUDAExecutionProvider")
    assert not done.ok
    assert "fell back to CPUExecutionProvider" in done.reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "ended by signal 11"),
        ("echo libcudnn.so.9: cannot open shared object file >&2; echo later >&2; exit 1", "libcudnn.so.9"),
        ("exit 7", "failed (exit 7)"),
    ],
)
def test_a_probe_that_dies_is_told_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    done = probe("ort:CPUExecutionProvider")
    assert not done.ok
    assert reason in done.reason


def _install(folder: Path, *names: str) -> None:
    for name in names:
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_both_onnxruntime_packages_are_an_error_with_the_line_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    _install(tmp_path, "onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(module, "list_devices", lambda backend: (["cpu"], ""))
    found = [f for f in diagnose(weights, lambda name: Probe(name, True)).findings if f.level == "error"]
    assert len(found) == 1
    assert "onnxruntime and onnxruntime-gpu" in found[0].what
    assert found[0].fix == 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "clusir[gpu]"'


def test_one_onnxruntime_package_is_no_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda prefix: [prefix])
    monkeypatch.setattr(module, "list_devices", lambda backend: (["cpu"], ""))
    result = diagnose(weights, lambda name: Probe(name, True))
    assert not [f for f in result.findings if f.level == "error"]
    assert result.exit_code() == 0


def test_a_machine_without_any_backend_is_told_what_to_install(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda prefix: [])
    result = diagnose(weights)
    assert result.exit_code() == 3
    assert any(f.fix == 'pip install "clusir[cpu]"' for f in result.findings)


def test_a_missing_model_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "list_devices", lambda backend: (["cpu"], ""))
    result = diagnose(tmp_path, lambda name: Probe(name, True))
    assert any("model is missing" in f.what and f.level == "error" for f in result.findings)
    assert result.exit_code() == 1


def test_a_broken_cuda_names_the_library(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "list_devices", lambda b: (["CUDAExecutionProvider", "CPUExecutionProvider"], ""))
    reason = "listed, but it fell back to CPUExecutionProvider: libcublasLt.so.13: cannot open shared object file"

    def fake(name: str) -> Probe:
        return Probe(name, "CUDA" not in name, reason="" if "CPU" in name else reason)

    result = diagnose(weights, fake)
    broken = [f for f in result.findings if "CUDA" in f.what and f.level == "error"]
    assert "libcublasLt.so.13 is missing" in broken[0].what
    assert broken[0].fix == 'pip install -U "onnxruntime-gpu[cuda,cudnn]"'
    assert result.exit_code("ort") == 1
    assert result.exit_code("ort", "cuda") == 3


def test_cuda_advice_names_the_first_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no NVIDIA card" in cuda_advice(MACHINE).what
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_advice(MACHINE).fix == "unset CUDA_VISIBLE_DEVICES"
    assert "CPU build" in cuda_advice({**MACHINE, "gpus": [CARD]}).what
    gpu = {**MACHINE, "gpus": [CARD], "packages": {"onnxruntime-gpu": "1.0"}}
    assert "cudnn" in cuda_advice(gpu).fix


def test_cpu_without_vnni_is_told_about_int8() -> None:
    notes = module._check_cpu({**MACHINE, "machine": "x86_64", "cpu_features": ["AVX2"]})
    assert any("INT8" in f.what for f in notes)
    notes = module._check_cpu({**MACHINE, "machine": "x86_64", "cpu_features": ["SSE4.2", "VNNI"]})
    assert any("no AVX2" in f.what for f in notes)
    assert not any("INT8" in f.what for f in notes)


def test_runs_matches_backend_and_device() -> None:
    result = Diagnosis(MACHINE, [Probe("ort:CPUExecutionProvider", True), Probe("torch:cuda", False)])
    assert result.runs("ort", "cpu")
    assert result.runs("auto")
    assert not result.runs("ort", "cuda")
    assert not result.runs("torch")


def test_fingerprint_names_this_machine() -> None:
    data = fingerprint(threads=3)
    assert data["cores"] >= 1
    assert data["memory_mib"] > 100
    line = describe(data)
    assert "3 threads" in line
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in line


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from clusir.cli.doctor import main

    fake = Diagnosis(MACHINE, [Probe("ort:CPUExecutionProvider", True)])
    monkeypatch.setattr(module, "diagnose", lambda folder: fake)
    plain = CliRunner().invoke(main, [])
    assert plain.exit_code == 0
    assert "not measured here; clusir-run --precision auto does it once" in plain.output
    times = {"fp32 on ort": 65.0, "bf16 on openvino": 39.2}
    fake.speeds = [{"model": "m.onnx", "date": "2026-11-29", "milliseconds": times, "fastest": "bf16 on openvino"}]
    told = CliRunner().invoke(main, []).output
    assert "m.onnx: fp32 on ort 65.0, bf16 on openvino 39.2 ms a tile; --precision auto takes bf16 on openvino" in told
    assert "ort:CPUExecutionProvider" in plain.output
    refused = CliRunner().invoke(main, ["--device", "cuda", "--json"])
    assert refused.exit_code == 3
    data = json.loads(refused.output)
    assert data["exit_code"] == 3
    assert data["speeds"] == fake.speeds
    assert any("clusir[gpu]" in f["fix"] for f in data["findings"])
