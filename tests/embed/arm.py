"""The C++ library for 64-bit Arm and what runs it here: a cross compiler, an emulator, and ONNX Runtime's Arm build.

The numbers are those of the real NEON kernels; the times mean nothing.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from toolchain import BUILD, CPP, alone, build_cpp, run

from tests import needs


def arm_command(program: str) -> list[str | Path]:
    """The command that runs an Arm program of the build folder, without its arguments: emulator and library folder."""
    needs.program("aarch64-linux-gnu-g++", "arm")
    needs.program("qemu-aarch64", "arm")
    build_cpp(
        "aarch64",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake' / 'aarch64-linux-gnu.cmake'}",
        "-DCLUSIR_OPENVINO=OFF",
        "-DCLUSIR_ORT=ON",
        "-DCLUSIR_BUILD_TESTS=ON",
        targets=(program,),
    )
    with alone("aarch64-root") as folder:
        root = run(CPP / "tools" / "emulated_arm_root.sh", folder).strip()
    return ["qemu-aarch64", "-L", root, BUILD / "aarch64" / program]


def arm_ort_library() -> Path:
    """libonnxruntime out of the Arm wheel of the installed version."""
    import onnxruntime

    folder = BUILD / "aarch64-wheel"
    found = sorted(folder.glob(f"onnxruntime/capi/libonnxruntime.so.{onnxruntime.__version__}"))
    if found:
        return found[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    command += ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.11"]
    out = run(*command, f"onnxruntime=={onnxruntime.__version__}", check=False)
    wheels = sorted(folder.glob(f"onnxruntime-{onnxruntime.__version__}-*.whl"))
    if not wheels:
        needs.skip("arm", f"the wheel cannot be had: {out[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if "/libonnxruntime.so" in name)
        return Path(wheel.extract(member, folder))
