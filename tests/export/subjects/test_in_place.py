"""Published code that writes in place: over its input, over its own weights, over parts of a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.module import export_module
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")


class ScalesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x *= 255
        made: Tensor = (x + self.mix(x)) / 255
        return made


class MergesItsBranches(nn.Module):
    """Two branches become one convolution in every forward of eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.merged = nn.Conv2d(3, 3, 3, padding=1)

    def merge(self) -> None:
        self.kernel = self.wide.weight.data.clone().detach() + F.pad(self.point.weight.data.clone().detach(), [1] * 4)
        self.merged.weight.data = self.kernel.contiguous()
        self.merged.bias.data = self.wide.bias.data + self.point.bias.data

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            both: Tensor = self.wide(x) + self.point(x)
            return x + both
        self.merge()
        made: Tensor = x + self.merged(x)
        return made


class WritesOverChannels(nn.Module):
    """A gradient of this cannot be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.part, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.sigmoid(self.enter(x))
        f[:, :2] = self.part(f[:, :2])
        made: Tensor = x + self.leave(f * f)
        return made


class NumbersItsBorders(nn.Module):
    """A map of regions by slices that count from the end, as masks of shifted windows are made."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        regions = torch.zeros(1, *x.shape[2:], 1)
        bounds = (slice(0, -8), slice(-8, -4), slice(-4, None))
        for number, (high, wide) in enumerate((h, w) for h in bounds for w in bounds):
            regions[:, high, wide, :] = number
        made: Tensor = x + 0.1 * self.mix(x * regions.permute(0, 3, 1, 2))
        return made


@pytest.mark.parametrize("kind", [ScalesItsInput, MergesItsBranches, WritesOverChannels, NumbersItsBorders])
def test_code_that_writes_in_place_is_exported_for_any_size(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    made = export_module(network, "1x3x64x64", tmp_path / "model.onnx", backends=("ort",))
    assert not made.spec.size.static_px
    torch.manual_seed(0)
    reference = kind().eval()
    picture = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = reference(picture.clone()).numpy()
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            np.testing.assert_allclose(runner.run({"image": picture.numpy()})["restored"], want, atol=1e-5)
