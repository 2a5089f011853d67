"""The C++ library for Windows: cross-compiled by mingw, run under Wine with ONNX Runtime's own Windows library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toolchain import BUILD, CPP, GOLDEN, build_cpp, library_of_wheel, run

from tests import needs
from tests.golden.make.cases import load_golden

QUIET = {"WINEDEBUG": "-all"}


@pytest.fixture(scope="module")
def windows() -> Path:
    """The folder of libclusir.dll and the test programs."""
    needs.program("x86_64-w64-mingw32-g++-posix", "windows")
    needs.program("wine", "windows")
    header = BUILD / "json-header"  # /usr/include itself would bring the host's C library
    header.mkdir(parents=True, exist_ok=True)
    if not (header / "nlohmann").exists():
        (header / "nlohmann").symlink_to("/usr/include/nlohmann")
    return build_cpp(
        "windows",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_TOOLCHAIN_FILE={CPP / 'cmake' / 'x86_64-w64-mingw32.cmake'}",
        f"-DCLUSIR_JSON_INCLUDE_DIR={header}",
        "-DCLUSIR_OPENVINO=OFF",
        "-DCLUSIR_ORT=ON",
        "-DCLUSIR_BUILD_TESTS=ON",
    )


def wine(program: Path, *arguments: str | Path) -> str:
    """What a Windows program prints; paths are given as Wine's drive Z, which is the root."""
    given = [f"Z:{part}" if isinstance(part, Path) else part for part in arguments]
    return run("wine", program, *given, env=os.environ | QUIET, timeout_s=900)


@needs.FULL
def test_tables_golden_cases_and_hostile_input_on_windows(windows: Path, hostile_folder: Path) -> None:
    """Files are named in UTF-8 there too: the hostile test opens one that the code page does not have."""
    library = library_of_wheel("windows", "win_amd64", "/onnxruntime.dll")
    for told in (
        wine(windows / "clusir-tables.exe", GOLDEN / "tables"),
        wine(windows / "clusir-hostile.exe", hostile_folder, "ort", library),
        wine(windows / "clusir-golden.exe", GOLDEN, "ort", library),
    ):
        assert any(line.endswith(" passed, 0 failed") for line in told.splitlines()), told[-2000:]
    assert told.count("max abs difference") == len(load_golden(GOLDEN))
