"""The C++ library: built with both back ends, held to the golden cases, to Python, and to bad manners."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toolchain import BACKENDS, CPP, GOLDEN, REPOSITORY, ort_library, run

from clusir.runtimes.runners.metadata import read_metadata
from clusir.runtimes.runners.quiet import import_openvino
from tests import needs
from tests.golden.make.cases import golden_picture, load_golden

STANDIN = GOLDEN / "standin.onnx"


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_cases(cpp: Path, golden: Path, backend: str) -> None:
    out = run(cpp / "clusir-golden", golden, backend, ort_library())
    assert out.count("max abs difference") == len(load_golden(GOLDEN))
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


def test_tables(cpp: Path) -> None:
    """Specs, gates, rounding and tiles are answered as in Python; the field list is that of the schema."""
    out = run(cpp / "clusir-tables", GOLDEN / "tables")
    assert out.splitlines()[-1].endswith(" passed, 0 failed")
    schema = json.loads((REPOSITORY / "clusir" / "spec.schema.json").read_text(encoding="utf-8"))
    fields = [line.removeprefix("field ") for line in out.splitlines() if line.startswith("field ")]
    assert fields == list(schema["properties"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_hostile_input(cpp: Path, hostile_folder: Path, backend: str) -> None:
    out = run(cpp / "clusir-hostile", hostile_folder, backend, ort_library())
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


def test_openvino_ir_is_opened_like_onnx(cpp: Path, tmp_path: Path) -> None:
    openvino = import_openvino()
    for part in ("tile", "router"):
        source = GOLDEN / f"standin.{part}.onnx"
        model = openvino.Core().read_model(source)
        for key, value in read_metadata(source).items():
            model.set_rt_info(value, ["clusir", key.removeprefix("clusir.")])
        openvino.save_model(model, tmp_path / f"standin.{part}.xml", compress_to_fp16=False)
    case = next(case for case in load_golden(GOLDEN) if case.name == "nine_tiles_u8")
    height, width = case.pixels.shape[:2]
    (tmp_path / "in.rgb").write_bytes(case.pixels.tobytes())
    arguments = ["-", "1", str(width), str(height), tmp_path / "in.rgb", tmp_path / "out.f32"]
    run(cpp / "clusir-raw", tmp_path / "standin.tile.xml", "openvino", *arguments)
    restored = np.fromfile(tmp_path / "out.f32", np.float32).reshape(case.restored.shape)
    assert np.abs(restored - case.restored).max() <= case.tolerance


def test_golden_check_can_fail(cpp: Path, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "out" / "nine_tiles_u8.bin"
    values = np.frombuffer(broken.read_bytes(), "<f4").copy()
    values[len(values) // 2] += 0.01
    broken.write_bytes(values.tobytes())
    out = run(cpp / "clusir-golden", tmp_path, "ort", ort_library(), check=False)
    assert "FAILED: nine_tiles_u8: restored differs" in out


@pytest.mark.parametrize(("mode", "kind", "channels"), [("RGB", "u8", 3), ("RGBA", "u8", 4)])
def test_example_restores_a_png(cpp: Path, tmp_path: Path, mode: str, kind: str, channels: int) -> None:
    from clusir.runtimes.restore.restorer import Restorer

    pixels = golden_picture(150, 70, channels, kind=kind)
    Image.fromarray(pixels, mode).save(tmp_path / "in.png")
    environment = {"CLUSIR_ORT_LIBRARY": str(ort_library())}
    told = run(
        cpp / "clusir-restore", STANDIN, tmp_path / "in.png", tmp_path / "out.png", "--backend", "ort", env=environment
    )
    assert "level 2: noise=" in told
    with Restorer(STANDIN, backend="ort", device="cpu") as restorer:
        expected = restorer.restore(pixels)
    restored = np.asarray(Image.open(tmp_path / "out.png"))
    assert restored.shape == pixels.shape
    assert np.abs(restored.astype(int) - expected.astype(int)).max() <= 1
    assert np.array_equal(restored[..., 3:], pixels[..., 3:])


def test_example_keeps_16_bits(cpp: Path, tmp_path: Path) -> None:
    """RGB with more than 256 levels, written and read by clusir itself: Pillow keeps 8 bits of such a picture."""
    from clusir.runtimes.images.files import save_picture
    from clusir.runtimes.images.open import open_picture
    from clusir.runtimes.images.picture import PictureInfo
    from clusir.runtimes.restore.restorer import Restorer

    pixels = golden_picture(120, 50, 3, kind="u16")
    info = PictureInfo("PNG", 120, 50, 3, np.dtype(np.uint16))
    save_picture(tmp_path / "in.png", [pixels], info)
    environment = {"CLUSIR_ORT_LIBRARY": str(ort_library())}
    run(cpp / "clusir-restore", STANDIN, tmp_path / "in.png", tmp_path / "out.png", "--backend", "ort", env=environment)
    restored = open_picture(tmp_path / "out.png").rows(0, 50)
    with Restorer(STANDIN, backend="ort", device="cpu") as restorer:
        expected = restorer.restore(pixels)
    assert restored.shape == pixels.shape
    assert restored.dtype == np.uint16
    assert len(np.unique(restored)) > 256
    assert np.abs(restored.astype(int) - expected.astype(int)).max() <= 1 + 1e-4 * 65535


def test_example_says_what_is_wrong(cpp: Path, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_text("not a picture")
    out = run(cpp / "clusir-restore", STANDIN, tmp_path / "in.png", tmp_path / "out.png", check=False)
    assert "error: " in out
    assert not (tmp_path / "out.png").exists()
    out = run(cpp / "clusir-restore", tmp_path / "none.onnx", tmp_path / "in.png", tmp_path / "out.png", check=False)
    assert "there is no such file" in out
    Image.new("RGB", (40, 30)).save(tmp_path / "in.png")
    environment = {"CLUSIR_ORT_LIBRARY": str(ort_library())}
    arguments = [STANDIN, tmp_path / "in.png", tmp_path / "none" / "out.png", "--backend", "ort"]
    out = run(cpp / "clusir-restore", *arguments, check=False, env=environment)
    assert "out.png: cannot be written" in out
    assert "tile" not in out  # said before the work
    assert run(cpp / "clusir-restore", "--help").startswith("usage: ")
    assert "usage: " in run(cpp / "clusir-restore", *arguments, "--threads", "two", check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


def test_a_program_outside_the_tree_uses_the_installed_package(cpp: Path, tmp_path: Path) -> None:
    cmake = needs.program("cmake", "c++")
    run(cmake, "--install", cpp, "--prefix", tmp_path / "installed")
    strict = ["-DCMAKE_C_FLAGS=-std=c11 -Wall -Wextra -pedantic -Werror", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    settings = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}", *strict]
    run(cmake, "-S", CPP / "consumer", "-B", tmp_path / "build", *settings)
    run(cmake, "--build", tmp_path / "build")
    environment = {"CLUSIR_ORT_LIBRARY": str(ort_library())}
    answers = {
        run(tmp_path / "build" / program, STANDIN, backend, env=environment).strip()
        for program in ("consumer_c", "consumer_cpp")
        for backend in BACKENDS
    }
    assert len(answers) == 1, answers
    header = (tmp_path / "installed" / "include" / "clusir" / "clusir.h").read_text()
    assert "#include <clusir" not in header  # the C header stands alone
