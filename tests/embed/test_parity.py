"""One photo, every language: Python, C++ on both back ends (and the browser: test_web) give the same picture.

A photo of six tiles goes through the stand-in at the shipped model's tile size, a smaller one through the shipped
model; with CLUSIR_FULL=1 one of 1900x1300 goes through the shipped model too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from toolchain import BACKENDS, ort_library, photo, run, shipped_model

from clusir.runtimes.restore.restorer import Restorer
from tests import needs
from tests.golden.make.standin import write_standin

TOLERANCE = 1e-4
PHOTOS = [("standin", 640, 420), ("shipped", 420, 300), pytest.param(("shipped", 1900, 1300), marks=needs.FULL)]


@pytest.fixture(scope="module", params=PHOTOS, ids=lambda p: f"{p[0]}-{p[1]}x{p[2]}")
def restored_by_python(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, NDArray[np.uint8], NDArray[np.float32]]:
    """The model, the photo [H, W, 3] uint8, and what Python over ONNX Runtime makes of it (float32)."""
    name, width, height = request.param
    folder = tmp_path_factory.mktemp("parity")
    model = shipped_model() if name == "shipped" else write_standin(folder, tile_px=256, halo_px=16)
    pixels = photo(width, height)
    with Restorer(model, backend="ort", device="cpu") as restorer:
        restored, work = restorer.restore_and_tell(pixels.astype(np.float32) / np.float32(255))
    assert work.tiles > 1
    return model, pixels, restored


@pytest.mark.parametrize("backend", BACKENDS)
def test_cpp_agrees_with_python(
    cpp: Path,
    tmp_path: Path,
    restored_by_python: tuple[Path, NDArray[np.uint8], NDArray[np.float32]],
    backend: str,
) -> None:
    model, pixels, expected = restored_by_python
    height, width = pixels.shape[:2]
    (tmp_path / "in.rgb").write_bytes(pixels.tobytes())
    arguments = ["2", str(width), str(height), tmp_path / "in.rgb"]
    told = run(cpp / "clusir-raw", model, backend, ort_library(), *arguments, tmp_path / "out.f32")
    restored = np.fromfile(tmp_path / "out.f32", np.float32).reshape(pixels.shape)
    worst = float(np.abs(restored - expected).max())
    print(f"{model.name}, {width}x{height}, {backend}: {worst:.1e} from Python")
    assert worst <= TOLERANCE
    levels = np.abs(np.rint(restored * 255) - np.rint(expected * 255)).max()
    assert levels <= 1
    assert json.loads(told)["backend"] == backend
    # Memory does not grow with the picture: the picture itself twice, a band of rows, and the back end.
    assert json.loads(told)["peak_mib"] < 1024


def test_python_agrees_with_itself_on_openvino(
    restored_by_python: tuple[Path, NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    model, pixels, expected = restored_by_python
    with Restorer(model, backend="openvino", device="cpu") as restorer:
        restored = restorer.restore(pixels.astype(np.float32) / np.float32(255))
    assert np.abs(restored - expected).max() <= TOLERANCE


@needs.FULL
def test_twelve_megapixels_in_bounded_memory(cpp: Path, tmp_path: Path) -> None:
    model = write_standin(tmp_path, tile_px=256, halo_px=16)
    np.tile(photo(500, 500), (6, 8, 1)).tofile(tmp_path / "in.rgb")
    arguments = ["2", "4000", "3000", tmp_path / "in.rgb", tmp_path / "out.rgb"]
    told = json.loads(run(cpp / "clusir-raw", model, "ort", ort_library(), *arguments))
    assert (tmp_path / "out.rgb").stat().st_size == 36_000_000
    assert told["peak_mib"] < 400
