"""The JNI border of the Android sample, on a desktop JDK: the same C++ file that the NDK would build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toolchain import GOLDEN, REPOSITORY, build_cpp, ort_library, run

from clusir.export.formats.ort_mobile import write_ort_mobile
from tests import needs
from tests.golden.make.cases import load_golden

SOURCES = REPOSITORY / "runtimes" / "mobile" / "android" / "app" / "src" / "main" / "cpp"
CLASS = Path(__file__).parent / "jni" / "org" / "clusir" / "Clusir.java"


@pytest.mark.slow
def test_a_jvm_restores_a_golden_case_through_jni(tmp_path: Path) -> None:
    javac, java = Path(needs.program("javac", "jdk")).resolve(), needs.program("java", "jdk")
    needs.program("g++", "c++")
    home = javac.parents[1]
    if not (home / "include" / "jni.h").is_file():
        needs.skip("jdk", f"{home} holds no jni.h")
    # Not optimised: the library is compiled a second time here, and what is asked of it is its border.
    build = build_cpp("jni", f"-DJAVA_HOME={home}", "-DCMAKE_CXX_FLAGS=-O0", source=SOURCES)
    run(javac, "-d", tmp_path, CLASS)
    write_ort_mobile(GOLDEN / "standin_k2.onnx", tmp_path)
    case = next(case for case in load_golden(GOLDEN) if case.name == "two_experts_alpha_u8")
    height, width, channels = case.pixels.shape
    (tmp_path / "in.raw").write_bytes(case.pixels.tobytes())
    told = run(
        *(java, "-Xcheck:jni", f"-Djava.library.path={build}", "-cp", tmp_path, "org.clusir.Clusir"),
        *(tmp_path / "standin_k2.tile.ort", tmp_path / "standin_k2.router.ort", ort_library()),
        *(tmp_path / "in.raw", tmp_path / "out.raw", str(width), str(height), str(channels)),
    )
    # 7 posteriors; a call before the first of 2 x 3 tiles and one after each; a label.
    assert told.splitlines()[-1] == "7 7 jpeg"
    assert "WARNING in native method" not in told
    restored = np.fromfile(tmp_path / "out.raw", np.uint8).reshape(case.pixels.shape)
    assert np.array_equal(restored[..., 3], case.pixels[..., 3])
    expected = np.rint(case.restored * 255).astype(int)
    assert np.abs(restored[..., :3].astype(int) - expected).max() <= 1
