"""LiteRT's file in LiteRT itself, operator by operator: strides, groups and axes that our network does not have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.litert import Litert
from clusir.export.graph.session import Probe
from tests.needs import skip

SIDE = 16


@pytest.fixture
def litert() -> Litert:
    if not os.environ.get(Litert.variable):
        skip("litert")
    return Litert()


def whole(net: Net, *sizes: int) -> str:
    return net.const(sizes, dtype=np.int64)


def convolutions(net: Net, x: str) -> list[str]:
    wide = net.op("Conv", x, net.random(8, 3, 3, 3), net.random(8), pads=[0, 1, 2, 1])
    grouped = net.op("Conv", wide, net.random(12, 2, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1])
    doubled = net.op(
        "Conv", wide, net.random(16, 1, 3, 3), net.random(16), group=8, dilations=[2, 2], pads=[2, 2, 2, 2]
    )
    back = net.op("ConvTranspose", grouped, net.random(12, 2, 4, 4), net.random(6), group=3, strides=[2, 2],
                  pads=[1, 1, 1, 1])  # fmt: skip
    return [doubled, back]


def blocks(net: Net, x: str) -> list[str]:
    deep = net.op("SpaceToDepth", x, blocksize=4)
    return [net.op("DepthToSpace", deep, blocksize=2, mode="CRD"), net.op("DepthToSpace", deep, blocksize=4)]


def axes(net: Net, x: str) -> list[str]:
    a, b = net.split(x, [5, 11], axis=2)
    joined = net.op("Concat", b, a, axis=2)
    back = net.op("Slice", joined, whole(net, 14, 1), whole(net, -(2**31), 3), whole(net, 3, 1), whole(net, -2, 1))
    few = net.op("Slice", x, whole(net, -3), whole(net, 2**31 - 1), whole(net, 1), whole(net, 2))
    padded = net.op("Pad", few, whole(net, 0, 0, 2, 1, 0, 0, 1, 3), mode="reflect")
    return [back, net.op("Pad", padded, whole(net, 0, 1, 0, 0, 0, 0, 2, 0), net.const(0.5)),
            net.op("Gather", net.op("Transpose", x, perm=[0, 2, 1, 3]), whole(net, 2, 0, 0), axis=2)]  # fmt: skip


def reductions(net: Net, x: str) -> list[str]:
    kinds = {"ReduceMean": [2, 3], "ReduceSum": [1], "ReduceMax": [3], "ReduceMin": [1, 2], "ReduceL2": [-1]}
    found = [net.op(kind, x, whole(net, *over), keepdims=1) for kind, over in kinds.items()]
    flat = net.op("ReduceMean", x, whole(net, 2, 3), keepdims=0)
    linear = net.op("Gemm", flat, net.random(5, 3), net.random(5), transB=1, alpha=0.5, beta=2.0)
    return [*found, net.op("Expand", net.op("Unsqueeze", linear, whole(net, 2)), whole(net, 1, 5, 7)),
            net.op("GlobalAveragePool", x), net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
            net.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1])]  # fmt: skip


def elements(net: Net, x: str) -> list[str]:
    mapped = net.op("Conv", x, net.random(3, 3, 1, 1))  # with its channels last from here on
    mixed = net.op("Mul", net.op("Add", mapped, net.random(3, 1, 1)), net.random(SIDE))
    above = net.op("Greater", mixed, x)
    chosen = net.op("Where", net.op("Not", above), mixed, net.op("Clip", x, net.const(0.2)))
    slopes = net.op("PRelu", net.op("LeakyRelu", chosen, alpha=0.2), net.random(3, 1, 1))
    low = net.op("Min", net.op("Max", slopes, x), net.const(0.9))
    return [low, net.op("Cast", above, to=1), net.op("Softmax", mixed, axis=1), net.op("Pow", x, net.const(2.0)),
            net.op("LayerNormalization", mixed, net.random(SIDE), net.random(SIDE)),
            net.op("MatMul", net.random(4, SIDE), mixed), net.op("Erf", mixed), net.op("CastLike", above, mixed),
            net.op("InstanceNormalization", mixed, net.random(3), net.random(3)),
            net.op("Sqrt", net.op("Exp", net.op("Tanh", mixed)))]  # fmt: skip


@pytest.mark.parametrize("write", [convolutions, blocks, axes, reductions, elements])
def test_operators_are_right(litert: Litert, tmp_path: Path, write: Callable[[Net, str], list[str]]) -> None:
    net = Net()
    net.input("input", 1, 3, SIDE, SIDE)
    parts = [net.op("Reshape", part, whole(net, 1, 1, 1, -1)) for part in write(net, "input")]
    net.output(net.op("Concat", *parts, name="output", axis=3))
    model = net.model()
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    image = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    wanted = Probe(model, optimise=False).run({"input": image})["output"]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("output", 1, wanted.shape))
    litert.convert(model, tmp_path)
    (got,) = litert.answers(tmp_path, [image])
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


def test_an_operator_without_a_form_is_named(litert: Litert, tmp_path: Path) -> None:
    net = Net()
    net.input("input", 1, 3, SIDE, SIDE)
    net.output(net.op("Mish", "input", name="output"))
    with pytest.raises(Refused, match="no form of Mish"):
        litert.convert(net.model(), tmp_path)
