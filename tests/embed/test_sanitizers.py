"""AddressSanitizer and UndefinedBehaviourSanitizer over the C++ library: the golden cases, and everything hostile.

A file of its own, so that another process can build it while the ordinary library is built and tested.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from toolchain import GOLDEN, build_cpp, openvino_cmake, ort_library, run

from tests import needs


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ort", pytest.param("openvino", marks=needs.FULL)])
def test_sanitizers_find_nothing(hostile_folder: Path, backend: str) -> None:
    settings = [f"-DOpenVINO_DIR={openvino_cmake()}", "-DCLUSIR_ORT=OFF"] if backend == "openvino" else []
    build = build_cpp(
        f"sanitized-{backend}",
        *settings,
        f"-DCLUSIR_OPENVINO={'ON' if backend == 'openvino' else 'OFF'}",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCLUSIR_UNITY=ON",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0",  # reports need lines alone, which the library asks for: -g is 7 % more time
        "-DCLUSIR_SANITIZE=address,undefined",
        "-DCLUSIR_BUILD_TESTS=ON",
        targets=("clusir-golden", "clusir-hostile"),
    )
    for program, folder in (("clusir-hostile", hostile_folder), ("clusir-golden", GOLDEN)):
        out = run(build / program, folder, backend, ort_library())
        assert out.splitlines()[-1].endswith(" passed, 0 failed")
        assert "ERROR: AddressSanitizer" not in out
        assert "runtime error" not in out
