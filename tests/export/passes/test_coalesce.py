"""Coalesce: the same numbers, bit for bit, with four axes at most where neighbours are never looked at apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.export.graph.session import Probe
from clusir.export.passes.coalesce import Coalesce
from clusir.export.passes.rank_four import known_shapes

rng = np.random.default_rng(5)
SHAPE = (1, 6, 16, 24)
Write = Callable[[Net, str], str]


def sizes(net: Net, *values: int) -> str:
    return net.const(values, dtype=np.int64)


def patches(net: Net, image: str) -> str:
    cut = net.op("Reshape", image, sizes(net, 1, 6, 4, 4, 6, 4))
    return net.op("Transpose", cut, perm=[0, 1, 2, 4, 3, 5])


def spectral(net: Net, image: str) -> str:
    """Complex numbers as a last axis of two, of patches: eight axes in PyTorch's order."""
    cut = patches(net, image)
    pairs = net.op("Reshape", net.op("MatMul", cut, net.random(4, 10)), sizes(net, 1, 6, 4, 6, 4, 5, 2))
    real, imaginary = (net.op("Gather", pairs, net.const(k, dtype=np.int64), axis=6) for k in (0, 1))
    mask = net.random(6, 1, 1, 4, 5)
    a = net.op("Sub", net.op("Mul", real, mask), imaginary)
    b = net.op("Add", net.op("Mul", imaginary, mask), real)
    last = sizes(net, 6)
    both = net.op("Concat", net.op("Unsqueeze", a, last), net.op("Unsqueeze", b, last), axis=-1)
    return net.op("Reshape", both, sizes(net, 1, 6, 4, 240))


def windows(net: Net, image: str) -> str:
    """Attention in windows with a mask of each window, as Swin has it."""
    cut = net.op("Transpose", net.op("Reshape", image, sizes(net, 1, 6, 4, 4, 6, 4)), perm=[0, 2, 4, 3, 5, 1])
    tokens = net.op("Reshape", cut, sizes(net, 24, 16, 6))
    scores = net.op("MatMul", tokens, net.random(6, 16))
    wide = net.op("Reshape", scores, sizes(net, 1, 24, 2, 8, 16))
    masked = net.op("Softmax", net.op("Add", wide, net.random(1, 24, 1, 8, 16)), axis=-1)
    return net.op("Reshape", masked, sizes(net, 1, 24, 16, 16))


def sums(keep: int) -> Write:
    def write(net: Net, image: str) -> str:
        six = net.op("Relu", patches(net, image))
        return net.op("Reshape", net.op("ReduceMean", six, sizes(net, 4, 5), keepdims=keep), sizes(net, 1, 1, 1, -1))

    return write


def apart(net: Net, image: str) -> str:
    """The sum over one axis of a pair, the cut through another: those two stay."""
    six = net.op("Relu", patches(net, image))
    cut = net.op("Slice", six, sizes(net, 1), sizes(net, 4), sizes(net, 3))
    return net.op("Reshape", net.op("ReduceMax", cut, sizes(net, -1)), sizes(net, 1, 6, 4, -1))


def products(net: Net, image: str) -> str:
    six = patches(net, image)
    turned = net.op("Transpose", six, perm=[0, 1, 2, 3, 5, 4])
    made = net.op("MatMul", net.op("MatMul", six, turned), net.random(6, 1, 1, 4, 3))
    parts = net.split(made, [1, 2], axis=-1)
    grown = net.op("Expand", parts[0], sizes(net, 1, 6, 4, 6, 4, 2))
    normal = net.op("LayerNormalization", net.op("Add", grown, parts[1]), net.random(2), net.random(2))
    return net.op("Reshape", normal, sizes(net, 1, 6, 4, -1))


CASES: dict[str, Write] = {
    "spectral": spectral, "windows": windows, "sums": sums(0), "sums that stay": sums(1), "apart": apart,
    "products": products,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay_and_the_axes_are_fewer(name: str) -> None:
    write = CASES[name]
    net = Net()
    image = net.input("image", *SHAPE)
    net.output(net.op("Relu", write(net, image)))
    model = onnx.shape_inference.infer_shapes(net.model(), data_prop=True)
    made = Coalesce().apply(model)
    assert made.modified, made.notes
    picture = rng.normal(0, 1, SHAPE).astype(np.float32)
    wanted, got = (next(iter(Probe(m, optimise=False).run({"image": picture}).values())) for m in (model, made.model))
    assert np.array_equal(got, wanted)
    # A transposition may be of five: that of patches is, however it is told.
    shapes = known_shapes(made.model)
    turned = {name for n in made.model.graph.node if n.op_type == "Transpose" for name in (*n.input, *n.output)}
    assert [name for name, shape in shapes.items() if len(shape) > 4 + (name in turned)] == []


def test_what_is_not_known_stays() -> None:
    net = Net()
    image = net.input("image", *SHAPE)
    six = net.op("CumSum", patches(net, image), net.const(2, dtype=np.int64))
    net.output(net.op("Reshape", six, sizes(net, *SHAPE)))
    model = onnx.shape_inference.infer_shapes(net.model(), data_prop=True)
    made = Coalesce().apply(model)
    found = known_shapes(made.model)
    assert len(found[six]) == 6
