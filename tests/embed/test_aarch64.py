"""The C++ library for 64-bit Arm, under user-mode emulation, with ONNX Runtime's own Arm library.

The numbers are those of the real NEON kernels; the times mean nothing.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from toolchain import BUILD, CPP, FULL, GOLDEN, build_cpp, need, run, shipped_model

from clusir.export.golden import load_golden, restore_with_python, write_golden


@pytest.fixture(scope="module")
def arm() -> list[str | Path]:
    """The command that runs an Arm program of the build folder, without its arguments: emulator and library folder."""
    need("aarch64-linux-gnu-g++")
    need("qemu-aarch64")
    build_cpp(
        "aarch64",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake' / 'aarch64-linux-gnu.cmake'}",
        "-DCLUSIR_OPENVINO=OFF",
        "-DCLUSIR_ORT=ON",
        "-DCLUSIR_BUILD_TESTS=ON",
        targets=("clusir-golden",),
    )
    root = run(CPP / "tools" / "emulated_arm_root.sh", BUILD / "aarch64-root").strip()
    return ["qemu-aarch64", "-L", root, BUILD / "aarch64" / "clusir-golden"]


@pytest.fixture(scope="module")
def arm_library() -> Path:
    """libonnxruntime out of the Arm wheel of the installed version."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = BUILD / "aarch64-wheel"
    found = sorted(folder.glob(f"onnxruntime/capi/libonnxruntime.so.{onnxruntime.__version__}"))
    if found:
        return found[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    command += ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.11"]
    out = run(*command, f"onnxruntime=={onnxruntime.__version__}", check=False)
    wheels = sorted(folder.glob(f"onnxruntime-{onnxruntime.__version__}-*.whl"))
    if not wheels:
        pytest.skip(f"the Arm wheel of onnxruntime cannot be had here: {out[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if "/libonnxruntime.so" in name)
        return Path(wheel.extract(member, folder))


def test_golden_cases_on_arm(arm: list[str | Path], arm_library: Path) -> None:
    assert "aarch64" in run("file", arm[-1]) if Path("/usr/bin/file").is_file() else True
    out = run(*arm, GOLDEN, "ort", arm_library, timeout_s=600)
    assert out.count("max abs difference") == len(load_golden(GOLDEN))
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


@FULL
def test_shipped_model_on_arm(arm: list[str | Path], arm_library: Path, tmp_path: Path) -> None:
    write_golden(tmp_path, restore_with_python, shipped_model())
    out = run(*arm, tmp_path, "ort", arm_library, timeout_s=3600)
    assert "ort named_tiles_u8: max abs difference" in out
    assert out.splitlines()[-1].endswith(" passed, 0 failed")
