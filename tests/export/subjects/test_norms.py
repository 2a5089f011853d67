"""Instance norms of pictures of one colour, where runtimes' own are off by thousandths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.export.module import export_module
from clusir.runtimes import open_runner


class Halves(nn.Module):
    """Half of a map normed over the picture, as HINet does; sizes are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)

    def forward(self, image: Tensor) -> Tensor:
        left, right = self.enter(image).chunk(2, dim=1)
        made = image + 0.1 * self.leave(torch.cat([self.norm(left), right], 1))
        return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(made, 16), 16)


def test_a_file_for_any_size_is_right_for_pictures_of_one_colour(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Halves().eval()
    made = export_module(network, "1x3x64x64", tmp_path / "net.onnx")
    assert not made.spec.size.static_px
    assert any(note.startswith("SteadyNorm: 1 of 1") for note in made.notes)
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(made.path).graph.node}
    image = torch.full((1, 3, 384, 512), 0.74)
    with torch.no_grad():
        want = network.double()(image.double()).numpy()
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            got = runner.run({"image": image.numpy()})["restored"]
        assert np.abs(got - want).max() <= 2e-5
