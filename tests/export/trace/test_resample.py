"""Pools whose windows follow the picture's size are right on both runtimes, on long maps too."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.passes.simplify import AttachMetadata
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from clusir.runtimes import open_runner
from clusir.spec import ModelSpec, SizeRequirements


class Pools(nn.Module):
    """An eighth of the map by its maxima and by its means, taken back to its size."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        few = (h // 8, w // 8)
        most, mean = F.adaptive_max_pool2d(x, few), F.adaptive_avg_pool2d(x, few)
        return F.interpolate(most, (h, w)) - 0.5 * F.interpolate(mean, (h, w), mode="bilinear")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    traced = trace_module(Pools().eval(), torch.rand(2, 3, 73, 139))
    model, _ = write_program(traced)
    made = AttachMetadata(ModelSpec(size=SizeRequirements(1, 16))).apply(model).model
    path = tmp_path_factory.mktemp("pools") / "pools.onnx"
    onnx.save(made, str(path))
    return path


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_an_eighth_of_a_long_map(pools: Path, backend: str) -> None:
    """856 / 107 is 8, and 107 times 856 more than OpenVINO divides exactly."""
    with open_runner(pools, backend, "cpu", 1) as runner:
        for height, width in ((24, 856), (1000, 17), (61, 90)):
            image = torch.rand(1, 3, height, width)
            got = torch.from_numpy(runner.run({"image": image.numpy()})["restored"])
            torch.testing.assert_close(got, Pools()(image), atol=1e-5, rtol=0)
