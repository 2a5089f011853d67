"""A small network for the hosts: a box blur that takes multiples of 8 px only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.export.passes.simplify import AttachMetadata
from clusir.spec import ModelSpec, SizeRequirements

Make = Callable[..., Path]


@pytest.fixture
def network(tmp_path: Path) -> Make:
    """Writes the network as a model file of clusir's; ``side``: 0 for multiples of 8 px, up to ``most``; ``more``: of
    ModelSpec."""

    def make(
        side: int = 0, *, name: str = "blur", batch: int | str = "batch", channels: int = 3, most: int = 0, **more: Any
    ) -> Path:
        net = Net()
        net.input("image", batch, channels, side or "height", side or "width")
        kernel = np.zeros((channels, channels, 3, 3), np.float32)
        kernel[range(channels), range(channels)] = 1 / 9
        smooth = net.op("Conv", "image", net.const(kernel), pads=[1, 1, 1, 1])
        deep = net.op("SpaceToDepth", smooth, blocksize=8)  # what makes it a multiple of 8
        net.output(net.op("DepthToSpace", deep, name="restored", blocksize=8))
        spec = ModelSpec(name=name, size=SizeRequirements(8, 8, side, most), tile_px=side or 128, halo_px=16,
                         dft_form="none", channels=channels, **more)  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(AttachMetadata(spec).apply(net.model()).model, str(path))
        return path

    return make
