"""Sizes that code counts, compares and splits by, and operators along axes of any length that ONNX has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs_under_test import run_openvino
from habits import Habit, Together
from torch import Tensor

from clusir.export.base import Pipeline
from clusir.export.graph.session import Probe
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.program import trace_module
from clusir.export.trace.symbolic.ordering import counted
from clusir.export.trace.writer import write_program
from clusir.export.validate.cases import probes

SIZES = ((41, 56), (70, 33))


def numel(f: Tensor) -> Tensor:
    h, w = f.shape[2:]
    return f * (torch.Size([h, w]).numel() / 2000) + f.shape[1:].numel() / 9000 + f.size()[-2:].numel() / 5000


def products(f: Tensor) -> Tensor:
    return f * (math.prod(f.shape[-2:]) / 2000) + float(np.prod(f.shape[1:])) / 9000 + f.numel() // f.size(0) / 9000


def extremes(f: Tensor) -> Tensor:
    short, long = sorted(f.shape[-2:])
    f = f * np.max(f.shape[2:]) / 50 + float(np.min(f.shape[-2:])) / 90 + np.sum(f.shape[1:]) / 900
    return f * (min(f.shape[2:]) / max(f.size()[-2:])) + short / 100 + sorted(f.shape[2:], reverse=True)[1] / long


def rest(f: Tensor) -> Tensor:
    (q, r), (_, other) = divmod(f.shape[2], 8), divmod(f.size(3), 5)
    return f * q / 10 + r / 10 + other / 10


def lengths(f: Tensor) -> Tensor:
    return f * (len(f[0, 0]) / 50) + len(torch.arange(f.shape[3])) / 100 + len(f.shape) / 10


def numpy_types(f: Tensor) -> Tensor:
    h, w = f.shape[2:]
    whole = np.ceil(max(h, w) / 8).astype(int) * 8
    return f * (int(whole) / 100) + np.int64(w).item() / 100


def parts(f: Tensor) -> Tensor:
    wide = torch.cat(torch.tensor_split(f, 3, 3)[::-1], 3)
    return wide + torch.cat(f.tensor_split((f.shape[2] // 3, f.shape[2] // 2), dim=2)[::-1], 2)


def backwards(f: Tensor) -> Tensor:
    return torch.index_select(f, 3, torch.arange(f.shape[3] - 1, -1, -1)) + f[
        :, :, torch.arange(f.shape[2] - 1, 0, -2)
    ].mean(2, True)


def running(f: Tensor) -> Tensor:
    f = (f * 6).round() / 6  # with equal values
    return f.cummin(dim=2)[1] / 50 + torch.cummax(f, 3).values


def turned(f: Tensor) -> Tensor:
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 1.0, 0.1]]]).expand(f.shape[0], 2, 3)
    grids = (F.affine_grid(theta, f.size(), align_corners=corners) for corners in (False, True))
    return sum(F.grid_sample(f, grid, align_corners=False, padding_mode="reflection") for grid in grids)


def slopes(f: Tensor) -> Tensor:
    return (
        F.rrelu(f) + torch.nn.RReLU(0.1, 0.3).eval()(f) + torch.fake_quantize_per_tensor_affine(f, 0.05, 3, -128, 127)
    )


def pools(f: Tensor) -> Tensor:
    made = [
        F.avg_pool2d(f, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(f, (2, 3), divisor_override=4),
        F.avg_pool2d(f, 4, 3, 2, ceil_mode=True, divisor_override=5),
        F.avg_pool2d(f, 5, 4, 2, ceil_mode=True),
    ]
    return sum(F.interpolate(part, f.shape[2:]) for part in made)


KINDS: dict[str, tuple[Habit, ...]] = {
    "sizes": (numel, products, extremes, rest, lengths, numpy_types),
    "axes": (parts, backwards, running, turned),
    "values": (slopes, pools),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_along_an_axis_holds_for_any_size(kind: str) -> None:
    model = Together(*KINDS[kind]).eval()
    written, _ = write_program(trace_module(model, probes(2, 3, 47, 83), multiple=1))
    graph = Pipeline([SimplifyGraph()]).run(written)
    run = Probe(graph, threads=1)
    for size in SIZES:
        image = probes(1, 3, *size)
        with torch.no_grad():
            want = model(image).numpy()
        for got in (run.run({"image": image.numpy()})["restored"], run_openvino(graph, image.numpy())):
            np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)


def test_pools_that_runtimes_have_right_stay() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            small = F.avg_pool2d(x, 3, 2, 1, True, False)
            return F.interpolate(small, x.shape[2:]) + F.avg_pool2d(x, 3, 1, 1)

    written, _ = write_program(trace_module(Net(), probes(2, 3, 48, 80), multiple=2))
    assert sum(node.op_type == "AveragePool" for node in written.graph.node) == 2
    assert not any(node.op_type == "Pad" for node in written.graph.node)


def test_the_methods_of_sizes_come_back() -> None:
    before = torch.Size.numel
    with counted():
        assert torch.Size([2, 3]).numel() == 6
        assert torch.Size.numel is not before
    assert torch.Size.numel is before
    assert torch.Size([]).numel() == 1
    assert not hasattr(torch.SymFloat, "astype")
