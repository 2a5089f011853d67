"""SteadyNorm: the operator's answers on ordinary maps, and exact ones where a runtime's own are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs_under_test import run_openvino
from small_graphs import Net, run, same

from clusir.export.passes.steady_norm import SteadyNorm


def norm(rank: int, epsilon: float = 1e-5) -> Net:
    """One norm of maps (or rows) of two channels, any size, with a scale and a shift."""
    net = Net()
    source = net.input("x", "b", 2, *("h", "w")[: rank - 2])
    scale, shift = net.const([1.5, -0.5]), net.const([0.25, 3.0])
    net.output(net.op("InstanceNormalization", source, scale, shift, epsilon=epsilon))
    return net


def exact(x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    weights = [torch.tensor(w, dtype=torch.float64) for w in ([1.5, -0.5], [0.25, 3.0])]
    made = torch.nn.functional.instance_norm(torch.from_numpy(x).double(), None, None, *weights, eps=epsilon)
    return np.asarray(made)


def flat_maps() -> dict[str, np.ndarray]:
    """One colour; with a frame, as padding leaves it; with one other pixel."""
    flat = np.full((1, 2, 256, 320), 0.37, np.float32) * np.array([1, 1.7], np.float32)[None, :, None, None]
    framed, spot = flat.copy(), flat.copy()
    framed[:, :, 0] *= 0.7
    framed[..., -1] *= 0.8
    spot[:, :, 100, 150] += 0.3
    return {"flat": flat, "framed": framed, "spot": spot}


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_ordinary_maps_are_normed_as_before(rank: int, epsilon: float) -> None:
    result = same(SteadyNorm(), norm(rank, epsilon), batch=5)
    assert result.modified
    assert "InstanceNormalization" not in {node.op_type for node in result.model.graph.node}


@pytest.mark.parametrize("kind", ["flat", "framed", "spot"])
def test_maps_of_nearly_one_colour_are_normed_on_both_runtimes(kind: str) -> None:
    before, x = norm(4).model(), flat_maps()[kind]
    made = SteadyNorm().apply(before).model
    want = exact(x)
    (plain,) = run(before, {"x": x}).values()
    assert np.abs(plain - want).max() > 1e-3, "else the operator could stay"
    (got,) = run(made, {"x": x}).values()
    for found in (got, run_openvino(made, x)):
        assert np.abs(found - want).max() <= 5e-5


def grouped() -> Net:
    """A norm of two groups of maps, as PyTorch's GroupNorm is written: rows of half of the channels, of any size."""
    net = Net()
    source = net.input("x", "b", 16, "h", "w")
    rows = net.op("Reshape", source, net.const([0, 2, -1], dtype=np.int64))
    normed = net.op("InstanceNormalization", rows, net.const([1.5, -0.5]), net.const([0.25, 3.0]), epsilon=1e-5)
    net.output(net.op("Reshape", normed, net.op("Shape", source)))
    return net


def test_groups_of_large_maps_are_folded_so_that_sums_stay_short() -> None:
    x = np.random.default_rng(0).normal(3.0, 0.2, (1, 16, 512, 384)).astype(np.float32)
    made = SteadyNorm().apply(grouped().model()).model
    want = exact(x.reshape(1, 2, -1)).reshape(x.shape)
    (got,) = run(made, {"x": x}).values()
    for found in (got, run_openvino(made, x)):
        assert np.abs(found - want).max() <= 1e-5
    assert same(SteadyNorm(), grouped(), batch=5).modified


def test_a_graph_without_norms_stays() -> None:
    net = Net()
    net.output(net.op("Relu", net.input("x", "b", 2, "h", "w")))
    assert not same(SteadyNorm(), net).modified


@pytest.mark.parametrize(("kind", "axes"), [("ReduceL2", [-1]), ("ReduceMean", [-1]), ("ReduceL2", [2, 3]),
                                            ("ReduceSum", [2, 3]), ("ReduceSumSquare", [3])])  # fmt: skip
@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums_over_pixels_are_exact_on_both_runtimes(kind: str, axes: list[int], keepdims: int) -> None:
    net = Net()
    source = net.input("x", "b", 2, "h", "w")
    rows = net.op("Reshape", source, net.const([0, 1, 2, -1], dtype=np.int64)) if len(axes) == 1 else source
    net.output(net.op(kind, rows, net.const(axes, dtype=np.int64), keepdims=keepdims))
    made = same(SteadyNorm(), net, batch=5)
    assert made.modified
    assert kind not in {node.op_type for node in made.model.graph.node}
    x = flat_maps()["framed"]
    flat = x.astype(np.float64).reshape(1, 2, -1)
    pooled = {"ReduceL2": np.sqrt((flat**2).sum(-1)), "ReduceMean": flat.mean(-1), "ReduceSum": flat.sum(-1),
              "ReduceSumSquare": (flat**2).sum(-1)}[kind]  # fmt: skip
    (got,) = run(made.model, {"x": x}).values()
    for found in (got, run_openvino(made.model, x)):
        np.testing.assert_allclose(found.reshape(1, 2), pooled, rtol=1e-5)
    if kind == "ReduceL2":
        (plain,) = run(net.model(), {"x": x}).values()
        assert np.abs(plain.reshape(1, 2) / pooled - 1).max() > 1e-4, "else the operator could stay"


def test_sums_over_channels_stay() -> None:
    net = Net()
    tokens = net.op("Reshape", net.input("x", "b", 8, "h", "w"), net.const([0, -1, 8], dtype=np.int64))
    net.output(net.op("ReduceL2", tokens, net.const([-1], dtype=np.int64), keepdims=1))
    assert not same(SteadyNorm(), net).modified


@pytest.mark.parametrize("rank", [3, 4])
def test_products_over_pixels_are_exact_on_both_runtimes(rank: int) -> None:
    net = Net()
    source = net.input("x", "b", 2, "h", "w")
    rows = net.op("Reshape", source, net.const([0, 1, 2, -1] if rank == 4 else [0, 2, -1], dtype=np.int64))
    last = [*range(rank - 2), rank - 1, rank - 2]
    net.output(net.op("MatMul", rows, net.op("Transpose", net.op("Relu", rows), perm=last)))
    made = same(SteadyNorm(), net, batch=5)
    assert made.modified
    x = flat_maps()["framed"]
    flat = x.astype(np.float64).reshape(1, 2, -1)
    want = flat @ flat.transpose(0, 2, 1)
    (plain,), (got,) = (run(model, {"x": x}).values() for model in (net.model(), made.model))
    assert np.abs(plain.reshape(1, 2, 2) / want - 1).max() > 6e-6, "else the operator could stay"
    for found in (got, run_openvino(made.model, x)):
        np.testing.assert_allclose(found.reshape(1, 2, 2), want, rtol=3e-6)


def test_products_of_few_numbers_stay() -> None:
    net = Net()
    tokens = net.op("Reshape", net.input("x", "b", 8, "h", "w"), net.const([0, -1, 8], dtype=np.int64))
    net.output(net.op("MatMul", tokens, net.op("Transpose", tokens, perm=[0, 2, 1])))
    assert not same(SteadyNorm(), net).modified
