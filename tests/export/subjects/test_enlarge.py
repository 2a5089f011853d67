"""Networks whose picture is several times as large, and grey ones: exported at any size, right, run by clusir-run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from clusir.cli.run import main as run
from clusir.errors import UnsupportedModelError
from clusir.export.module import export_module
from clusir.export.subjects.outputs import choose_output, scale_of
from clusir.runtimes import open_runner


class Enlarge(nn.Module):
    """A sub-pixel convolution beside an interpolated picture."""

    def __init__(self, scale: int, channels: int = 3) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(channels, 12, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(12, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        smooth = nn.functional.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        made: Tensor = smooth + 0.1 * self.tail(torch.relu(self.head(x)))
        return made


class Pyramid(nn.Module):
    """A picture of twice and one of four times the size, which is made of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Enlarge(2), Enlarge(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.first(x)
        return middle, self.second(middle)


class OneSize(nn.Module):
    """Whatever comes becomes 64 px."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (4, 3), (2, 1)])
def test_exported_at_any_size_and_run(tmp_path: Path, scale: int, channels: int) -> None:
    torch.manual_seed(1)
    network, out = Enlarge(scale, channels).eval(), tmp_path / "large.onnx"
    made = export_module(network, f"1x{channels}x24x24", out, tile=32, halo=6)
    assert (made.spec.scale, made.spec.channels, made.spec.size.static_px) == (scale, channels, 0)
    picture = torch.rand(2, channels, 40, 56)
    with torch.no_grad():
        wanted = network(picture).numpy()
    for backend in ("ort", "openvino"):
        with open_runner(out, backend, "cpu", 1) as runner:
            assert np.abs(runner.run({"image": picture.numpy()})["restored"] - wanted).max() <= 1e-4
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)[: 3 if channels == 3 else 2], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    done = CliRunner().invoke(run, [str(tmp_path / "p.png"), "-o", str(tmp_path / "q.png"), "--model", str(out)])
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "q.png").size == (70 * scale, 50 * scale)
    unit = torch.from_numpy(pixels.astype(np.float32) / 255).reshape(50, 70, channels).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = network(unit).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    found = np.asarray(Image.open(tmp_path / "q.png")).astype(float).reshape(whole.shape)
    assert np.abs(found - whole).max() <= 0.75  # rounded, and a quarter of a level where tiles are blended


def test_which_picture_of_several_sizes() -> None:
    image = torch.rand(1, 3, 16, 24)
    place, notes = choose_output(Pyramid(), image)
    assert place == "[1]"
    assert len(notes) == 1
    assert choose_output(Pyramid(), image, "0") == ("[0]", ())
    assert scale_of(image, torch.rand(1, 3, 64, 96)) == 4
    wrong = (
        (1, 3, 64, 48),
        (1, 3, 24, 36),
        (1, 1, 16, 24),
        (1, 3, 8, 12),
        (1, 3, 144, 216),
        (1, 3, 16),
        (2, 3, 16, 24),
    )
    assert [scale_of(image, torch.rand(shape)) for shape in wrong] == [0] * len(wrong)


def test_an_answer_of_one_size_fixes_the_size(tmp_path: Path) -> None:
    made = export_module(OneSize(), "1x3x32x32", tmp_path / "m.onnx", backends=("ort",))
    assert (made.spec.scale, made.spec.size.static_px) == (2, 32)
    with pytest.raises(UnsupportedModelError, match="a whole number of times as large"):
        export_module(OneSize(), "1x3x48x48", tmp_path / "n.onnx", backends=("ort",))
