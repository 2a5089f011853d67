"""What is built once for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bad_models import write_bad_models
from toolchain import GOLDEN, build_cpp, openvino_cmake

from clusir.export.formats.weights import share_weights
from tests import needs


@pytest.fixture(scope="session")
def cpp() -> Path:
    """The build folder of the C++ library with both back ends, its example and its test programs."""
    needs.program("g++", "c++")
    if not Path("/usr/include/png.h").is_file():
        needs.skip("c++", "libpng-dev is not installed")
    return build_cpp(
        "cpp",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",  # compiled in 31 instead of 36 s, and every answer is the same
        f"-DOpenVINO_DIR={openvino_cmake()}",
        "-DCLUSIR_OPENVINO=ON",
        "-DCLUSIR_ORT=ON",
        "-DCLUSIR_BUILD_EXAMPLES=ON",
        "-DCLUSIR_BUILD_TESTS=ON",
    )


@pytest.fixture(scope="session", params=["inside", "shared"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden cases, with the weights of their graphs inside them, and in files beside them."""
    if request.param == "inside":
        return GOLDEN
    folder = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "shared"))
    for whole in folder.glob("*.onnx"):
        if "." not in whole.stem:
            parts = (whole.with_name(f"{whole.stem}.{kind}.onnx") for kind in ("tile", "router", "statistics"))
            assert share_weights([whole, *(path for path in parts if path.is_file())])
    return folder


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in model and the files that lie (see bad_models)."""
    return write_bad_models(tmp_path_factory.mktemp("hostile"))
