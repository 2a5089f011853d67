"""Small graphs with strides, groups and axes that our network does not have, for runtimes that get their operators from
us; and the question that each must answer on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from small_graphs import Net

from clusir.export.formats.hosts.converted import Converted
from clusir.export.graph.session import Probe

__all__ = ["GRAPHS", "difference", "six_axes"]

SIDE = 16


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
    below = net.op("Sub", x, net.const(2.0))  # a border of zeros would be its largest value
    around = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 0]}
    found += [net.op("MaxPool", below, **around), net.op("AveragePool", below, **around),
              net.op("AveragePool", below, **around, count_include_pad=1)]  # fmt: skip
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


def more(net: Net, x: str) -> list[str]:
    """What only some runtimes take: gathered and turned axes, comparisons, large arguments."""
    wide = net.op("Mul", x, net.const(200.0))
    windows = net.op("Transpose", net.op("Reshape", x, whole(net, 3, 4, 4, 16)), perm=[2, 0, 3, 1])
    scores = net.op("Softmax", net.op("MatMul", windows, net.random(4, 3, 4, 5)), axis=-1)
    row = net.op("Reshape", x, whole(net, 1, 48, 16))
    found = [scores, net.op("Conv", row, net.random(6, 48, 3), net.random(6), pads=[1, 1], strides=[2])]
    equal = net.op("Equal", net.op("Gather", x, whole(net, 1), axis=1), net.op("ReduceMax", x, whole(net, 1)))
    either = net.op("Or", net.op("LessOrEqual", x, net.const(0.5)), net.op("GreaterOrEqual", x, net.const(0.9)))
    both = net.op("And", either, net.op("Less", x, net.const(0.95)))
    found += [net.op("Cast", truth, to=1) for truth in (equal, both)]
    found += [net.op(kind, wide) for kind in ("Softplus", "Tanh", "Sigmoid")]
    found += [net.op("Gather", x, whole(net, 3, 0, 9, 2, 2, 15, 7), axis=3), net.op("Transpose", x, perm=[0, 3, 1, 2])]
    patches = net.op("Reshape", x, whole(net, 1, 3, 4, 4, 2, 8))  # windows: six axes for a moment
    found += [net.op("Reshape", net.op("Transpose", patches, perm=[0, 2, 4, 1, 3, 5]), whole(net, 8, 3, 32))]
    below = net.op("Sub", net.const(1.0), x)
    return [*found, net.op("Neg", below), net.op("Div", net.const(1.0), net.op("Add", x, net.const(0.1)))]


def rare(net: Net, x: str) -> list[str]:
    """What PlainOperators writes with others, and Resize as runtimes have it or not."""
    forms = [
        ("linear", "half_pixel", (24, 40)),
        ("linear", "align_corners", (32, 20)),
        ("nearest", "asymmetric", (48, 32)),
        ("nearest", "half_pixel", (32, 9)),
        ("cubic", "half_pixel", (20, 32)),
        ("linear", "asymmetric", (24, 24)),
    ]
    found = [
        net.op("Resize", x, "", "", whole(net, 1, 3, *sides), mode=mode, coordinate_transformation_mode=how,
               nearest_mode="floor")
        for mode, how, sides in forms
    ]  # fmt: skip
    scaled = net.op("Resize", x, "", net.const([1, 1, 2.3, 0.4]), mode="linear")
    scores = net.op("Einsum", x, net.random(1, 3, 5, SIDE), equation="bhid,bhjd->bhij")
    wide = net.op("Sub", net.op("Mul", x, net.const(8.0)), net.const(4.0))
    found += [scaled, scores, net.op("ScatterND", net.op("Reshape", x, whole(net, 3, SIDE, SIDE)),
                                     net.const([[2], [0]], dtype=np.int64), net.random(2, SIDE, SIDE))]  # fmt: skip
    found += [net.op(kind, wide) for kind in ("Mish", "Softplus", "HardSwish", "HardSigmoid", "Elu", "Selu", "Sign")]
    share = net.op("Add", net.op("Erf", net.op("Mul", wide, net.const(0.5**0.5))), net.const(1.0))
    found += [net.op("Mul", net.op("Mul", wide, share), net.const(0.5))]  # a GELU, as PyTorch's exporter writes it
    return [*found, net.op("ReduceL1", wide, whole(net, 3)), net.op("ReduceSumSquare", wide, whole(net, 1)),
            net.op("ReduceLogSumExp", wide, whole(net, 2)), net.op("Sum", wide, x, x)]  # fmt: skip


def six_axes(net: Net, x: str) -> list[str]:
    """What is computed on tensors of six axes; no runtime of phones but ncnn takes them from us."""
    patches = net.op("Reshape", x, whole(net, 1, 3, 4, 4, 2, 8))
    mixed = net.op("Mul", net.op("Add", patches, net.random(3, 4, 4, 1, 1)), net.random(8))
    heads = net.op("Reshape", x, whole(net, 1, 2, 2, 3, 8, 8))
    return [net.op("ReduceMean", mixed, whole(net, -1)), net.op("Concat", mixed, patches, axis=2),
            net.op("Softmax", heads, axis=-1), net.op("MatMul", heads, net.op("Relu", heads))]  # fmt: skip


GRAPHS: list[Callable[[Net, str], list[str]]] = [convolutions, blocks, axes, reductions, elements, more, rare]


def difference(host: Converted, write: Callable[[Net, str], list[str]], folder: Path) -> float:
    """How far the host's own answer is from ONNX Runtime's, relative to the largest value where that is above 1."""
    given, answer = ("image", "restored") if host.name == "coreml" else ("input", "output")
    net = Net()
    net.input(given, 1, 3, SIDE, SIDE)
    parts = [net.op("Reshape", part, whole(net, 1, 1, 1, -1)) for part in write(net, given)]
    net.output(net.op("Concat", *parts, name=answer, axis=3))
    model = onnx.shape_inference.infer_shapes(net.model(), data_prop=True)
    image = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    wanted = Probe(model, optimise=False).run({given: image})[answer]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(answer, 1, wanted.shape))
    host.convert(model, folder)
    (got,) = host.answers(folder, [image])
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / max(1, np.abs(wanted).max()))
