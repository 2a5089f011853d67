"""The JNI border of the Android sample, on a desktop JDK: the same C++ file that the NDK would build."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toolchain import GOLDEN, REPOSITORY, build_cpp, ort_library, photo, run

from clusir.export.formats.ort_mobile import write_ort_mobile
from clusir.runtimes.restore.restorer import Restorer
from clusir.spec import ModelSpec, SizeRequirements
from tests import needs
from tests.golden.make.cases import load_golden

SOURCES = REPOSITORY / "runtimes" / "mobile" / "android" / "app" / "src" / "main" / "cpp"
STAND_INS = Path(__file__).parent / "jni"
SIDE, HALO, GAINS = 48, 8, (1.0, 0.75, 0.5)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """The command that runs the test's class, without its arguments: the native library, the sample's own Java files,
    and a class in the place of LiteRT's."""
    javac, java = Path(needs.program("javac", "jdk")).resolve(), needs.program("java", "jdk")
    needs.program("g++", "c++")
    home = javac.parents[1]
    if not (home / "include" / "jni.h").is_file():
        needs.skip("jdk", f"{home} holds no jni.h")
    # Not optimised, and as one source: the library is compiled again, and what is asked of it is its border.
    settings = (f"-DJAVA_HOME={home}", "-DCMAKE_CXX_FLAGS=-O0", "-DCLUSIR_UNITY=ON")
    build = build_cpp("jni", *settings, source=SOURCES)
    out = tmp_path_factory.mktemp("classes")
    run(javac, "-d", out, *sorted(STAND_INS.rglob("*.java")), *sorted((SOURCES.parent / "java").rglob("*.java")))
    return java, "-Xcheck:jni", f"-Djava.library.path={build}", "-cp", out, "org.clusir.Clusir"


@pytest.mark.slow
def test_a_jvm_restores_a_golden_case_through_jni(classes: tuple[str | Path, ...], tmp_path: Path) -> None:
    write_ort_mobile(GOLDEN / "standin_k2.onnx", tmp_path)
    case = next(case for case in load_golden(GOLDEN) if case.name == "two_experts_alpha_u8")
    height, width, channels = case.pixels.shape
    (tmp_path / "in.raw").write_bytes(case.pixels.tobytes())
    told = run(
        *classes,
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


def neighbours(path: Path) -> ModelSpec:
    """The network that the class in the place of LiteRT's computes, as a model file of clusir's."""
    weights = np.zeros((3, 1, 1, 2), np.float32)
    weights[:, 0, 0] = np.asarray(GAINS, np.float32)[:, None] / 2
    node = helper.make_node("Conv", ["image", "weights"], ["restored"], group=3, pads=[0, 0, 0, 1])
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, SIDE, SIDE]) for name in ("image", "restored")
    ]
    graph = helper.make_graph([node], "neighbours", ports[:1], ports[1:], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    spec = ModelSpec(name="neighbours", size=SizeRequirements(1, 8, SIDE), tile_px=SIDE, halo_px=HALO, dft_form="none")
    helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, str(path))
    return spec


@pytest.mark.slow
def test_tiles_in_litert_are_those_of_python(classes: tuple[str | Path, ...], tmp_path: Path) -> None:
    spec = neighbours(tmp_path / "model.onnx")
    (tmp_path / "model.json").write_text(json.dumps(spec.to_metadata()))
    (tmp_path / "model.tflite").write_bytes(np.asarray([SIDE, *GAINS], np.float32).tobytes())
    pixels = photo(101, 67)
    (tmp_path / "in.rgb").write_bytes(pixels.tobytes())
    names = [tmp_path / name for name in ("model.tflite", "model.json", "in.rgb", "out.rgb")]
    told = run(*classes, "litert", *names, "101", "67", "3")
    with Restorer(tmp_path / "model.onnx", backend="ort", device="cpu") as restorer:
        wanted = restorer.restore(pixels)
    # A call before the first of 3 x 2 tiles and one after each.
    assert told.splitlines()[-1] == "7"
    assert "WARNING in native method" not in told
    found = np.fromfile(tmp_path / "out.rgb", np.uint8).reshape(pixels.shape)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - pixels.astype(int)).max() > 20
