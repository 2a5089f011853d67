"""The C++ library for 64-bit Arm, under emulation (see arm), held to the golden cases."""

from __future__ import annotations

from pathlib import Path

import pytest
from arm import arm_command, arm_ort_library
from toolchain import GOLDEN, run, shipped_model

from tests import needs
from tests.golden.make.cases import golden_picture, load_golden, restore_with_python, to_unit, write_golden


@pytest.fixture(scope="module")
def arm() -> list[str | Path]:
    return arm_command("clusir-golden")


@pytest.fixture(scope="module")
def arm_library() -> Path:
    return arm_ort_library()


def test_golden_cases_on_arm(arm: list[str | Path], arm_library: Path) -> None:
    assert "aarch64" in run("file", arm[-1]) if Path("/usr/bin/file").is_file() else True
    out = run(*arm, GOLDEN, "ort", arm_library, timeout_s=600)
    assert out.count("max abs difference") == len(load_golden(GOLDEN))
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


def write_int8(folder: Path) -> None:
    """INT8 variants of the stand-in's tile and whole graph beside it, calibrated on golden pictures."""
    import numpy as np

    from clusir.export.quantize.steps import Calibration, quantize_int8
    from clusir.runtimes import open_runner

    pictures = [to_unit(golden_picture(48, 48, seed=seed)).transpose(2, 0, 1)[None].copy() for seed in range(12)]
    with open_runner(folder / "standin.onnx", "ort", "cpu") as whole:
        decided = [whole.run({"image": picture}) for picture in pictures]
    with open_runner(folder / "standin.router.onnx", "ort", "cpu") as router:
        statistics = [router.run({"image": picture})["statistics"] for picture in pictures]
    alone = [{"image": picture} for picture in pictures]
    tiles = [
        {"image": picture, "posterior": out["posterior"], "gate": out["gate"], "statistics": values}
        for picture, out, values in zip(pictures, decided, statistics, strict=True)
    ]
    gates = np.concatenate([out["gate"] for out in decided])
    for part, feeds in (("", alone), (".tile", tiles)):
        calibration = Calibration(feeds, [f"{i}" for i in range(len(feeds))], gates, whole.spec.experts)
        quantize_int8(folder / f"standin{part}.onnx", folder / f"standin.int8{part}.onnx", calibration)


@needs.FULL
def test_int8_golden_cases_on_arm(arm: list[str | Path], arm_library: Path, tmp_path: Path) -> None:
    """Arm's integer kernels sum in another order and width than x86's: as near to float32 as INT8 is on x86."""
    import numpy as np

    from clusir.runtimes import Restorer

    write_golden(tmp_path, restore_with_python)
    write_int8(tmp_path)
    cases = [case for case in load_golden(tmp_path) if case.model.name == "standin.onnx"]
    with Restorer(tmp_path / "standin.int8.onnx", backend="ort", device="cpu") as restorer:
        worst = max(float(np.abs(restorer.restore(case.image) - case.restored).max()) for case in cases)
    assert 1e-4 < worst < 0.1  # it is not float32, and it is the same picture
    out = run(*arm, tmp_path, "ort", arm_library, "int8", str(1.5 * worst), timeout_s=1800)
    print(f"INT8 from float32: {worst:.4f} at most on x86; on Arm:\n{out}")
    assert out.count("max abs difference") == len(cases)
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


@needs.FULL
def test_shipped_model_on_arm(arm: list[str | Path], arm_library: Path, tmp_path: Path) -> None:
    write_golden(tmp_path, restore_with_python, shipped_model())
    out = run(*arm, tmp_path, "ort", arm_library, timeout_s=3600)
    assert "ort named_tiles_u8: max abs difference" in out
    assert out.splitlines()[-1].endswith(" passed, 0 failed")
