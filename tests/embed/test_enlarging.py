"""A network that enlarges four times: a photo in tiles is the photo at once, in Python, C++ and JavaScript."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toolchain import BACKENDS, WEB, ort_library, run
from torch import Tensor, nn

from clusir.export.module import export_module
from clusir.quality.metrics import psnr
from clusir.runtimes import open_runner
from clusir.runtimes.restore.restorer import Restorer
from tests import needs
from tests.golden.make.cases import FORMAT, TOLERANCE, golden_picture, to_unit

WIDTH, HEIGHT, SCALE = 180, 132, 4  # four and three tiles
LEAST_DB = 60.0


class Enlarge(nn.Module):
    """Looks seven pixels far, at what is sharp: a halo too small, or a tile in the wrong place, shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 7, padding=3),
                                  nn.LeakyReLU(0.1), nn.Conv2d(8, 3 * SCALE**2, 5, padding=2))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=SCALE) + nn.functional.pixel_shuffle(self.body(x), SCALE)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one golden case: what Python makes of a photo in tiles. ``whole.bin``: what the graph makes of it in
    one piece."""
    folder = tmp_path_factory.mktemp("enlarging")
    torch.manual_seed(2)
    model = folder / "x4.onnx"
    made = export_module(Enlarge().eval(), "1x3x32x32", model, tile=64, backends=("ort",))
    assert (made.spec.scale, made.spec.tile_px) == (SCALE, 64)
    assert made.spec.halo_px >= 7
    pixels = golden_picture(WIDTH, HEIGHT, 3, kind="u8", seed=50)
    planes = np.ascontiguousarray(to_unit(pixels).transpose(2, 0, 1))[None]
    with open_runner(model, "ort", "cpu", 1) as runner:
        whole = runner.run({"image": planes})["restored"][0].transpose(1, 2, 0).clip(0, 1)
    with Restorer(model, backend="ort", device="cpu", threads=1) as restorer:
        tiles = restorer.restore(to_unit(pixels))
    (folder / "in.bin").write_bytes(pixels.tobytes())
    for name, made in (("out", tiles), ("whole", whole)):
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(made, "<f4").tobytes())
    case = {"name": "x4", "model": model.name, "width": WIDTH, "height": HEIGHT, "channels": 3, "type": "u8",
            "input": "in.bin", "restored": "out.bin", "scale": SCALE, "tolerance": TOLERANCE}  # fmt: skip
    manifest = {"format": FORMAT, "cases": [], "enlarged": [case], "refused": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_tiles_are_the_photo_at_once(cases: Path) -> None:
    large = (SCALE * HEIGHT, SCALE * WIDTH, 3)
    tiles, whole = (np.fromfile(cases / f"{name}.bin", "<f4").reshape(large) for name in ("out", "whole"))
    assert psnr(tiles, whole) >= LEAST_DB
    plain = np.fromfile(cases / "in.bin", np.uint8).reshape(HEIGHT, WIDTH, 3).repeat(SCALE, 0).repeat(SCALE, 1)
    assert psnr(to_unit(plain), whole) < LEAST_DB / 2  # the network does something


@pytest.mark.parametrize("backend", BACKENDS)
def test_cpp_agrees(cpp: Path, cases: Path, backend: str) -> None:
    out = run(cpp / "clusir-golden", cases, backend, ort_library())
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


def test_javascript_agrees(cases: Path) -> None:
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        needs.skip("browser", "the npm packages are not installed")
    out = run(needs.program("node", "browser"), WEB / "test" / "cases.mjs", cases)
    assert out.count("max abs difference") == 1
    assert out.splitlines()[-1].endswith(" passed, 0 failed")
