"""``python writer_child.py FOLDER``: ``model.mlpackage`` from ``plan.json`` and ``weights.npz``. Runs where coremltools
is, and imports nothing of clusir: it may be another environment.

Each ONNX operator becomes operators of MIL (coremltools' documentation of ``mil.ops.defs``), iOS 16 and float32. Where
MIL has a term of its own that rounds or bounds (``inverse``, ``log`` and ``rsqrt`` add an epsilon), or an order of
channels that could be read in two ways (``depth_to_space``), other operators are taken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb

T = Any  # a value of MIL


class Values:
    """What each name of the graph is. A value whose shape has changed is reshaped once somebody reads it: MIL has five
    axes at most, and more are only passed through between a reshape and a transposition."""

    def __init__(self) -> None:
        self.held: dict[str, T] = {}
        self.shapes: dict[str, list[int]] = {}

    def __getitem__(self, name: str) -> T:
        value, shape = self.held[name], self.shapes[name]
        if list(value.shape) != shape and shape:
            value = self.held[name] = mb.reshape(x=value, shape=shape)
        return value

    def set(self, name: str, value: T, shape: list[int]) -> None:
        self.held[name], self.shapes[name] = value, list(shape)


class Node:
    """One operator: its attributes, its constant inputs, the values that it reads, the shapes that it answers."""

    def __init__(self, given: dict[str, Any], weights: Any) -> None:
        self.kind: str = given["op"]
        self.inputs: list[str] = given["inputs"]
        self.outputs: list[str] = given["outputs"]
        self.shapes: list[list[int]] = given["shapes"]
        self.attributes: dict[str, Any] = given["attributes"]
        self.weights = weights
        self.values: Values = Values()

    def __getitem__(self, index: int) -> T:
        return self.values[self.inputs[index]]

    def all(self) -> list[T]:
        return [self[index] for index, name in enumerate(self.inputs) if name]

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> Any:
        if not self.has(index):
            return None
        if self.inputs[index] not in self.weights:
            self.refuse(f"input {index} is computed")
        return self.weights[self.inputs[index]]

    def refuse(self, why: str) -> None:
        sys.exit(f"error: {self.kind} {self.outputs[0]}: {why}")


def pads(node: Node, rank: int) -> list[int]:
    """Before and behind, axis by axis."""
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        node.refuse("auto_pad is not written out")
    given = node.get("pads", [0] * 2 * rank)
    return [int(pad) for axis in range(rank) for pad in (given[axis], given[axis + rank])]


def convolution(node: Node) -> T:
    weight, bias = node.constant(1), node.constant(2)
    rank = weight.ndim - 2
    settings: dict[str, Any] = {
        "x": node[0], "weight": weight, "strides": node.get("strides", [1] * rank), "pad_type": "custom",
        "pad": pads(node, rank), "dilations": node.get("dilations", [1] * rank), "groups": node.get("group", 1),
    }  # fmt: skip
    if bias is not None:
        settings["bias"] = bias
    if node.kind == "Conv":
        return mb.conv(**settings)
    if any(node.get("output_padding", [0])) or "output_shape" in node.attributes:
        node.refuse("output_padding and output_shape have no form here")
    return mb.conv_transpose(**settings, output_shape=node.shapes[0])


def pool(node: Node) -> T:
    kernel = node.get("kernel_shape", None)
    if node.get("ceil_mode", 0) or set(node.get("dilations", [1])) != {1}:
        node.refuse("ceil_mode and dilations have no form here")
    settings = {"x": node[0], "kernel_sizes": kernel, "strides": node.get("strides", [1] * len(kernel)),
                "pad_type": "custom", "pad": pads(node, len(kernel))}  # fmt: skip
    if node.kind == "MaxPool":
        return mb.max_pool(**settings)
    return mb.avg_pool(**settings, exclude_padding_from_average=not node.get("count_include_pad", 0))


def blocks(node: Node) -> T:
    """MIL's pixel_shuffle is PyTorch's (CRD); another order is one of the channels."""
    size, x = int(node.get("blocksize", 1)), node[0]
    if node.kind == "SpaceToDepth":
        made = mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(size))
        order = np.arange(made.shape[1]).reshape(-1, size**2).T.reshape(-1)
        return mb.gather(x=made, indices=order.astype(np.int32), axis=1)
    if node.get("mode", "DCR") == "DCR":
        order = np.arange(x.shape[1]).reshape(size**2, -1).T.reshape(-1)
        x = mb.gather(x=x, indices=order.astype(np.int32), axis=1)
    return mb.pixel_shuffle(x=x, upscale_factor=size)


def fold(function: Callable[..., T]) -> Callable[[Node], T]:
    def run(node: Node) -> T:
        first, *rest = node.all()
        for value in rest:
            first = function(x=first, y=value)
        return first

    return run


def product(node: Node) -> T:
    rank = max(len(node[0].shape), len(node[1].shape))
    factors = []
    for name in node.inputs:
        given = node.values[name]
        shape = [1] * (rank - len(given.shape)) + list(given.shape)
        if name in node.weights:
            factors.append(node.weights[name].reshape(shape))
        else:
            factors.append(given if len(given.shape) == rank else mb.reshape(x=given, shape=shape))
    return mb.matmul(x=factors[0], y=factors[1])


def gemm(node: Node) -> T:
    if node.get("alpha", 1.0) != 1 or node.get("beta", 1.0) != 1:
        a = mb.mul(x=node[0], y=np.float32(node.get("alpha", 1.0)))
    else:
        a = node[0]
    out = mb.matmul(x=a, y=node[1], transpose_x=bool(node.get("transA", 0)), transpose_y=bool(node.get("transB", 0)))
    if not node.has(2):
        return out
    bias = node[2]
    return mb.add(x=out, y=mb.mul(x=bias, y=np.float32(node.get("beta", 1.0))) if node.get("beta", 1.0) != 1 else bias)


def reduce(node: Node) -> T:
    rank = len(node[0].shape)
    axes = node.get("axes", None) if len(node.inputs) < 2 else node.constant(1)
    if axes is None and node.get("noop_with_empty_axes", 0):
        return mb.identity(x=node[0])
    if node.kind == "GlobalAveragePool":
        axes = range(2, rank)
    over = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    run = {"ReduceMean": mb.reduce_mean, "ReduceSum": mb.reduce_sum, "ReduceMax": mb.reduce_max,
           "ReduceMin": mb.reduce_min, "ReduceL2": mb.reduce_l2_norm,
           "GlobalAveragePool": mb.reduce_mean}[node.kind]  # fmt: skip
    return run(x=node[0], axes=over, keep_dims=bool(node.get("keepdims", 1)))


def cut(node: Node) -> T:
    starts, ends, axes, steps = (node.constant(index) for index in (1, 2, 3, 4))
    x = node[0]
    over = range(len(starts)) if axes is None else [int(axis) % len(x.shape) for axis in axes]
    for index, axis in enumerate(over):
        step = 1 if steps is None else int(steps[index])
        places = range(*slice(int(starts[index]), int(ends[index]), step).indices(x.shape[axis]))
        if step < 0:
            x = mb.gather(x=x, indices=np.array(places, np.int32), axis=axis)
            continue
        begin, end, stride = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
        begin[axis], end[axis], stride[axis] = places.start, places.stop, step
        x = mb.slice_by_index(x=x, begin=begin, end=end, stride=stride)
    return x


def pad(node: Node) -> T:
    amounts, mode = np.asarray(node.constant(1)), node.get("mode", "constant")
    rank = len(node[0].shape)
    if node.has(3):
        whole = np.zeros((2, rank), np.int64)
        whole[:, [int(axis) % rank for axis in node.constant(3)]] = amounts.reshape(2, -1)
    else:
        whole = amounts.reshape(2, -1)
    name = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(mode)
    if name is None or (whole < 0).any() or (name != "constant" and whole[:, :-2].any()):
        node.refuse("only constant, and edge and reflect of the last two axes, not negative, have a form here")
    if name != "constant":
        whole = whole[:, -2:]
    fill = node.constant(2)
    value = np.float32(0 if fill is None else np.asarray(fill).reshape(()))
    return mb.pad(x=node[0], pad=whole.T.reshape(-1).astype(np.int32), mode=name, constant_val=value)


def split(node: Node) -> list[T]:
    axis = node.get("axis", 0)
    return list(mb.split(x=node[0], split_sizes=[shape[axis] for shape in node.shapes], axis=axis))


def clip(node: Node) -> T:
    x, low, high = node[0], node.constant(1), node.constant(2)
    x = x if low is None else mb.maximum(x=x, y=np.float32(low.reshape(())))
    return x if high is None else mb.minimum(x=x, y=np.float32(high.reshape(())))


def cast(node: Node) -> T:
    kinds = {1: "fp32", 6: "int32", 7: "int32", 9: "bool"}
    return mb.cast(x=node[0], dtype=kinds[node.get("to", 1)])


def expand(node: Node) -> T:
    x, out = node[0], node.shapes[0]
    full = [1] * (len(out) - len(x.shape)) + list(x.shape)
    x = mb.reshape(x=x, shape=full)
    return mb.tile(x=x, reps=[there // here for here, there in zip(full, out, strict=True)])


def normalise(node: Node) -> T:
    rank = len(node[0].shape)
    axes = list(range(node.get("axis", -1) % rank, rank))
    mean = mb.reduce_mean(x=node[0], axes=axes, keep_dims=True)
    return scaled(node, mb.sub(x=node[0], y=mean), axes, [])


def instances(node: Node) -> T:
    axes = list(range(2, len(node[0].shape)))
    mean = mb.reduce_mean(x=node[0], axes=axes, keep_dims=True)
    return scaled(node, mb.sub(x=node[0], y=mean), axes, [1, -1] + [1] * len(axes))


def scaled(node: Node, centred: T, axes: list[int], shape: list[int]) -> T:
    """Divided by its deviation along ``axes``, times the second input, plus the third; those two as ``shape``."""
    variance = mb.reduce_mean(x=mb.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    deviation = mb.sqrt(x=mb.add(x=variance, y=np.float32(node.get("epsilon", 1e-5))))
    scale, bias = node.constant(1), node.constant(2)
    out = mb.mul(x=mb.real_div(x=centred, y=deviation), y=scale.reshape(shape) if shape else scale)
    return out if bias is None else mb.add(x=out, y=bias.reshape(shape) if shape else bias)


def slopes(node: Node) -> T:
    """relu(x) - slope relu(-x), of one number or of many."""
    slope = node[1] if len(node.inputs) > 1 else np.float32(node.get("alpha", 0.01))
    negative = mb.relu(x=mb.mul(x=node[0], y=np.float32(-1)))
    return mb.sub(x=mb.relu(x=node[0]), y=mb.mul(x=negative, y=slope))


def one(function: Callable[..., T]) -> Callable[[Node], T]:
    return lambda node: function(x=node[0])


def reshape(node: Node) -> T:
    return node.values.held[node.inputs[0]]


def transpose(node: Node) -> T:
    given = node.values.held[node.inputs[0]]
    dims, order = node.attributes["coalesced"]
    if len(dims) < 2:
        return given
    given = given if list(given.shape) == dims else mb.reshape(x=given, shape=dims)
    return mb.transpose(x=given, perm=order)


OPERATORS: dict[str, Callable[[Node], Any]] = {
    "Add": fold(mb.add), "Sub": fold(mb.sub), "Mul": fold(mb.mul), "Div": fold(mb.real_div), "Max": fold(mb.maximum),
    "Min": fold(mb.minimum), "Pow": fold(mb.pow), "And": fold(mb.logical_and), "Or": fold(mb.logical_or),
    "Greater": fold(mb.greater), "GreaterOrEqual": fold(mb.greater_equal), "Less": fold(mb.less),
    "LessOrEqual": fold(mb.less_equal), "Equal": fold(mb.equal), "Not": one(mb.logical_not),
    "Abs": one(mb.abs), "Exp": one(mb.exp), "Log": lambda n: mb.log(x=n[0], epsilon=np.float32(0)),
    "Sqrt": one(mb.sqrt), "Sin": one(mb.sin), "Cos": one(mb.cos), "Floor": one(mb.floor), "Ceil": one(mb.ceil),
    "Relu": one(mb.relu), "Tanh": one(mb.tanh), "Sigmoid": one(mb.sigmoid), "Erf": one(mb.erf),
    "Identity": one(mb.identity), "Neg": lambda n: mb.mul(x=n[0], y=np.float32(-1)),
    "Reciprocal": lambda n: mb.real_div(x=np.float32(1), y=n[0]), "LeakyRelu": slopes,
    "PRelu": slopes, "Clip": clip, "Cast": cast,
    "CastLike": lambda n: mb.cast(x=n[0], dtype={"fp32": "fp32", "int32": "int32", "bool": "bool"}[_kind(n[1])]),
    "Where": lambda n: mb.select(cond=n[0], a=n[1], b=n[2]),
    "Gelu": lambda n: mb.gelu(x=n[0], mode="EXACT" if n.get("approximate", "none") == "none" else "TANH_APPROXIMATION"),
    "Conv": convolution, "ConvTranspose": convolution, "AveragePool": pool, "MaxPool": pool, "DepthToSpace": blocks,
    "SpaceToDepth": blocks, "MatMul": product, "Gemm": gemm, "Slice": cut, "Pad": pad, "Split": split,
    "Concat": lambda n: mb.concat(values=n.all(), axis=n.get("axis", 0)),
    "Softmax": lambda n: mb.softmax(x=n[0], axis=n.get("axis", -1)),
    "Transpose": transpose,
    "Gather": lambda n: mb.gather(x=n[0], indices=n.constant(1).astype(np.int32), axis=n.get("axis", 0)),
    "Expand": expand, "LayerNormalization": normalise, "InstanceNormalization": instances,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "GlobalAveragePool"), reduce),
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze", "Flatten"), reshape),
}  # fmt: skip


def _kind(value: T) -> str:
    name = str(getattr(value, "dtype", ""))
    return "bool" if "bool" in name else "int32" if "int" in name else "fp32"


def main(folder: str) -> None:
    with open(f"{folder}/plan.json", encoding="utf-8") as stream:
        plan = json.load(stream)
    weights = dict(np.load(f"{folder}/weights.npz"))
    nodes = [Node(given, weights) for given in plan["nodes"]]
    if missing := sorted({node.kind for node in nodes} - set(OPERATORS)):
        sys.exit(f"error: no form of {', '.join(missing)}")
    shape = tuple(plan["shape"])

    def program(image: T) -> T:
        values = Values()
        values.set(plan["input"], image, list(shape))
        for node in nodes:
            for name in node.inputs:
                if name and name not in values.held:
                    array = weights[name]
                    array = array.astype(np.int32) if array.dtype == np.int64 else array
                    values.set(name, mb.const(val=array), list(array.shape))
            node.values = values
            made = OPERATORS[node.kind](node)
            for name, value, out in zip(
                node.outputs, made if isinstance(made, list) else [made], node.shapes, strict=True
            ):
                values.set(name, value, out)
        return mb.identity(x=values[plan["output"]], name="restored")

    described = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS16)
    made = described(lambda image: program(image))
    package = ct.convert(
        made, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32, outputs=[ct.TensorType(name="restored")],
    )  # fmt: skip
    package.short_description = f"One picture in, one out: {'RGB' if shape[1] == 3 else 'grey'} in 0..1, float32."
    package.save(f"{folder}/model.mlpackage")


if __name__ == "__main__":
    main(sys.argv[1])
