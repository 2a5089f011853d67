"""The C++ library for 64-bit Arm and what runs it here: a cross compiler, an emulator, and ONNX Runtime's Arm build.

The numbers are those of the real NEON kernels; the times mean nothing.
"""

from __future__ import annotations

from pathlib import Path

from toolchain import BUILD, CPP, alone, build_cpp, library_of_wheel, run

from tests import needs


def arm_command(
    program: str, folder: str = "aarch64", settings: tuple[str, ...] = ("-DCLUSIR_ORT=ON",)
) -> list[str | Path]:
    """The command that runs an Arm program of the build folder, without its arguments: emulator and library folder."""
    needs.program("aarch64-linux-gnu-g++", "arm")
    needs.program("qemu-aarch64", "arm")
    build_cpp(
        folder,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake' / 'aarch64-linux-gnu.cmake'}",
        "-DCLUSIR_OPENVINO=OFF",
        *settings,
        "-DCLUSIR_BUILD_TESTS=ON",
        targets=(program,),
    )
    with alone("aarch64-root") as place:
        root = run(CPP / "tools" / "emulated_arm_root.sh", place).strip()
    return ["qemu-aarch64", "-L", root, BUILD / folder / program]


def arm_ort_library() -> Path:
    """libonnxruntime out of the Arm wheel of the installed version."""
    return library_of_wheel("arm", "manylinux_2_28_aarch64", "/libonnxruntime.so")
