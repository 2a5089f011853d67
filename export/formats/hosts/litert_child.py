"""``python litert_child.py FOLDER``: ``model.tflite`` and ``model_fp16.tflite``, or with ``int8`` behind it
``model_int8.tflite``, from ``plan.json`` and ``weights.npz``. Runs where TensorFlow is, and imports nothing of clusir:
it may be another environment.

The plan is an ONNX graph with every shape known, in the order in which it runs. Each operator becomes TensorFlow's own;
maps are kept with their channels last from the first convolution on, as LiteRT's convolutions want them, and turned
back only for an operator that needs ONNX's order.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import tensorflow as tf

T = Any  # a tensor of TensorFlow's
LOWEST = float(np.finfo(np.float32).min)  # below whatever a map holds


class Value:
    """A tensor, in ONNX's order of axes or with the channels last, or both once somebody has asked for both."""

    def __init__(self, plain: T = None, last: T = None) -> None:
        self._plain, self._last = plain, last

    @property
    def is_last(self) -> bool:
        return self._plain is None

    @property
    def plain(self) -> T:
        if self._plain is None:
            self._plain = tf.transpose(self._last, [0, 3, 1, 2])
        return self._plain

    @property
    def last(self) -> T:
        if self._last is None:
            self._last = tf.transpose(self._plain, [0, 2, 3, 1])
        return self._last


class Node:
    """One operator: its attributes, its constant inputs (None for others), the shapes of its outputs."""

    def __init__(self, given: dict[str, Any], weights: Any) -> None:
        self.kind: str = given["op"]
        self.inputs: list[str] = given["inputs"]
        self.outputs: list[str] = given["outputs"]
        self.shapes: list[list[int]] = given["shapes"]
        self.attributes: dict[str, Any] = given["attributes"]
        self.constants = [weights.get(name) for name in self.inputs]
        self.step = weights.get(f"{self.inputs[1]}:step") if len(self.inputs) > 1 else None  # of weights in integers

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def constant(self, index: int) -> Any:
        """The value of a constant input; None where it is not given."""
        if index >= len(self.inputs) or not self.inputs[index]:
            return None
        if self.constants[index] is None:
            self.refuse(f"input {index} is computed")
        return self.constants[index]

    def axes(self) -> list[int] | None:
        axes = self.get("axes", None) if len(self.inputs) < 2 else self.constant(1)
        return None if axes is None else [int(axis) for axis in axes]

    def refuse(self, why: str) -> None:
        sys.exit(f"error: {self.kind} {self.outputs[0]}: {why}")


def square(node: Node, name: str) -> int:
    given = node.get(name, [1, 1])
    if given[0] != given[-1]:
        node.refuse(f"{name} differ")
    return int(given[0])


def convolution(node: Node, x: Value, *_: Value) -> Value:
    weight, bias = np.asarray(node.constant(1)), node.constant(2)
    row = weight.ndim == 3  # a map of one row
    if row:
        weight, x = weight[:, :, None], Value(plain=tf.expand_dims(x.plain, 2))
    stride, dilation, groups = square(node, "strides"), square(node, "dilations"), node.get("group", 1)
    top, left, bottom, right = pads(node)
    given = x.last
    if any((top, left, bottom, right)):
        given = tf.pad(given, [[0, 0], [top, bottom], [left, right], [0, 0]])
    channels = given.shape[-1]
    if groups == channels and groups > 1:
        kernel = weight.reshape(channels, -1, *weight.shape[2:]).transpose(2, 3, 0, 1)
        out = tf.nn.depthwise_conv2d(given, kernel, [1, stride, stride, 1], "VALID", dilations=[dilation, dilation])
    else:
        parts = tf.split(given, groups, axis=-1) if groups > 1 else [given]
        kernels = np.split(weight.transpose(2, 3, 1, 0), groups, axis=-1)
        if node.step is not None:
            steps = np.split(np.broadcast_to(node.step, weight.shape[:1]), groups)
            kernels = [in_integers(k, step) for k, step in zip(kernels, steps, strict=True)]
        made = [tf.nn.conv2d(p, k, stride, "VALID", dilations=dilation) for p, k in zip(parts, kernels, strict=True)]
        out = tf.concat(made, -1) if groups > 1 else made[0]
    whole = Value(last=out if bias is None else tf.nn.bias_add(out, bias))
    return Value(plain=tf.squeeze(whole.plain, 2)) if row else whole


def in_integers(kernel: Any, step: Any) -> T:
    """Weights, the output channel last, marked for the converter as multiples of ``step``, at most 127 of them."""
    ends = np.asarray(step, np.float32) * np.float32(127)
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        np.asarray(kernel, np.float32), -ends, ends, narrow_range=True
    )


def rounded(node: Node, x: Value, *_: Value) -> Value:
    """QuantizeLinear, and the DequantizeLinear behind it: the converter makes integers of what lies between two."""
    step, zero = float(node.constant(1).reshape(())), int(node.constant(2).reshape(()))
    low, high = (0, 255) if node.constant(2).dtype == np.uint8 else (-128, 127)

    def run(tensor: T) -> T:
        return tf.quantization.fake_quant_with_min_max_args(tensor, (low - zero) * step, (high - zero) * step)

    return each(run)(node, x)


def pads(node: Node) -> list[int]:
    if node.get("auto_pad", "NOTSET") != "NOTSET":
        node.refuse("auto_pad is not written out")
    given = [int(pad) for pad in node.get("pads", [0, 0, 0, 0])]
    return given if len(given) == 4 else [0, given[0], 0, given[1]]


def transposed_convolution(node: Node, x: Value, *_: Value) -> Value:
    weight, bias = np.asarray(node.constant(1)), node.constant(2)
    stride, groups = square(node, "strides"), node.get("group", 1)
    if square(node, "dilations") != 1 or any(node.get("output_padding", [0])) or "output_shape" in node.attributes:
        node.refuse("dilations, output_padding and output_shape have no form here")
    inside, outside = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((weight.shape[0], outside * groups, *weight.shape[2:]), np.float32)
    for group in range(groups):
        rows = slice(group * inside, (group + 1) * inside)
        dense[rows, group * outside : (group + 1) * outside] = weight[rows]
    _, height, width, _ = x.last.shape
    whole = [(side - 1) * stride + kernel for side, kernel in zip((height, width), weight.shape[2:], strict=True)]
    kernel = dense.transpose(2, 3, 1, 0)
    out = tf.nn.conv2d_transpose(x.last, kernel, [1, *whole, dense.shape[1]], stride, "VALID")
    top, left, bottom, right = pads(node)
    out = out[:, top : whole[0] - bottom, left : whole[1] - right]
    return Value(last=out if bias is None else tf.nn.bias_add(out, bias))


def pool(node: Node, x: Value) -> Value:
    if node.get("ceil_mode", 0) or set(node.get("dilations", [1])) != {1}:
        node.refuse("ceil_mode and dilations have no form here")
    kernel, strides, mean = node.get("kernel_shape", None), node.get("strides", [1, 1]), node.kind == "AveragePool"
    top, left, bottom, right = pads(node)
    around = [[0, 0], [top, bottom], [left, right], [0, 0]]
    run = tf.nn.avg_pool2d if mean else tf.nn.max_pool2d
    if not any((top, left, bottom, right)):
        return Value(last=run(x.last, kernel, strides, "VALID"))
    out = run(tf.pad(x.last, around, constant_values=0.0 if mean else LOWEST), kernel, strides, "VALID")
    if mean and not node.get("count_include_pad", 0):
        inside = np.pad(np.ones(x.last.shape[1:3]), around[1:3])
        windows = np.lib.stride_tricks.sliding_window_view(inside, kernel)[:: strides[0], :: strides[1]]
        out = out * tf.constant(1 / windows.mean((2, 3))[None, :, :, None], tf.float32)
    return Value(last=out)


def each(function: Callable[..., T]) -> Callable[..., Value]:
    """An operator on elements, with the broadcasting that both have; in the order of axes that is there."""

    def run(node: Node, *values: Value) -> Value:
        rank = len(node.shapes[0])
        if rank == 4 and any(value.is_last for value in values):
            shaped = [value if value.is_last else Value(plain=four(value.plain)) for value in values]
            return Value(last=function(*(value.last for value in shaped)))
        return Value(plain=function(*(value.plain for value in values)))

    return run


def four(tensor: T) -> T:
    return tf.reshape(tensor, [1] * (4 - len(tensor.shape)) + list(tensor.shape))


def clip(node: Node, x: Value, *_: Value) -> Value:
    low, high = node.constant(1), node.constant(2)

    def between(tensor: T) -> T:
        raised = tensor if low is None else tf.maximum(tensor, float(low.reshape(())))
        return raised if high is None else tf.minimum(raised, float(high.reshape(())))

    return each(between)(node, x)


def gemm(node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    out = tf.matmul(a.plain, b.plain, transpose_a=bool(node.get("transA", 0)), transpose_b=bool(node.get("transB", 0)))
    out = out * node.get("alpha", 1.0) if node.get("alpha", 1.0) != 1 else out
    return Value(out if c is None else out + c.plain * node.get("beta", 1.0))


def reduce(node: Node, x: Value, *_: Value) -> Value:
    axes, keep = node.axes(), bool(node.get("keepdims", 1))
    if axes is None and node.get("noop_with_empty_axes", 0):
        return x
    run = {"ReduceMean": tf.reduce_mean, "ReduceSum": tf.reduce_sum, "ReduceMax": tf.reduce_max,
           "ReduceMin": tf.reduce_min}  # fmt: skip
    if node.kind == "ReduceL2":
        return Value(tf.sqrt(tf.reduce_sum(tf.square(x.plain), axes, keep)))
    return Value(run[node.kind](x.plain, axes, keep))


def cut(node: Node, x: Value, *_: Value) -> Value:
    starts, ends, axes, steps = (node.constant(index) for index in (1, 2, 3, 4))
    out = x.plain
    axes = range(len(starts)) if axes is None else [int(axis) for axis in axes]
    for index, axis in enumerate(axes):
        step = 1 if steps is None else int(steps[index])
        places = range(*slice(int(starts[index]), int(ends[index]), step).indices(out.shape[axis]))
        if step < 0:
            out = tf.gather(out, list(places), axis=axis)
        else:
            here: list[slice] = [slice(None)] * len(out.shape)
            here[axis] = slice(places.start, places.stop, step)
            out = out[tuple(here)]
    return Value(out)


def pad(node: Node, x: Value, *_: Value) -> Value:
    amounts, mode = np.asarray(node.constant(1)), node.get("mode", "constant")
    if mode not in ("constant", "reflect") or len(node.inputs) > 3 or (amounts < 0).any():
        node.refuse("only constant and reflect, of all axes and not negative, have a form here")
    fill = node.constant(2)
    value = 0.0 if fill is None else float(np.asarray(fill).reshape(()))
    return Value(tf.pad(x.plain, amounts.reshape(2, -1).T, mode.upper(), constant_values=value))


def blocks(node: Node, x: Value) -> Value:
    size, given = node.get("blocksize", 1), x.last
    if node.kind == "SpaceToDepth":
        return Value(last=tf.nn.space_to_depth(given, size))
    if node.get("mode", "DCR") == "CRD":
        channels = given.shape[-1] // size**2
        given = tf.gather(given, np.arange(channels * size**2).reshape(channels, -1).T.reshape(-1), axis=-1)
    return Value(last=tf.nn.depth_to_space(given, size))


def split(node: Node, x: Value, *_: Value) -> list[Value]:
    axis = node.get("axis", 0)
    return [Value(part) for part in tf.split(x.plain, [shape[axis] for shape in node.shapes], axis)]


def join(node: Node, *values: Value) -> Value:
    axis = node.get("axis", 0) % len(node.shapes[0])
    if any(value.is_last for value in values):
        return Value(last=tf.concat([value.last for value in values], [0, 3, 1, 2][axis]))
    return Value(tf.concat([value.plain for value in values], axis))


def normalise(node: Node, x: Value, scale: Value, bias: Value | None = None) -> Value:
    axes = list(range(node.get("axis", -1) % len(x.plain.shape), len(x.plain.shape)))
    mean, variance = tf.nn.moments(x.plain, axes, keepdims=True)
    out = (x.plain - mean) * tf.math.rsqrt(variance + node.get("epsilon", 1e-5)) * scale.plain
    return Value(out if bias is None else out + bias.plain)


def instances(node: Node, x: Value, scale: Value, bias: Value) -> Value:
    given = x.plain
    mean, variance = tf.nn.moments(given, list(range(2, len(given.shape))), keepdims=True)
    channels = [1, -1] + [1] * (len(given.shape) - 2)
    out = (given - mean) * tf.math.rsqrt(variance + node.get("epsilon", 1e-5))
    return Value(out * tf.reshape(scale.plain, channels) + tf.reshape(bias.plain, channels))


def error_function(x: T) -> T:
    """LiteRT has none: Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    size = tf.abs(x)
    t = 1.0 / (1.0 + 0.3275911 * size)
    sum_ = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return tf.sign(x) * (1.0 - sum_ * tf.exp(-size * size))


def reshape(node: Node, x: Value, *_: Value) -> Value:
    return Value(tf.reshape(x.plain, node.shapes[0]))


KINDS = {1: tf.float32, 6: tf.int32, 7: tf.int64, 9: tf.bool}
OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": each(tf.add), "Sub": each(tf.subtract), "Mul": each(tf.multiply), "Div": each(tf.divide),
    "Max": each(lambda *v: tf.maximum(v[0], v[1]) if len(v) == 2 else v[0]),
    "Min": each(lambda *v: tf.minimum(v[0], v[1]) if len(v) == 2 else v[0]), "Pow": each(tf.pow),
    "Abs": each(tf.abs), "Neg": each(tf.negative), "Exp": each(tf.exp), "Log": each(tf.math.log),
    "Sqrt": each(tf.sqrt), "Reciprocal": each(tf.math.reciprocal), "Relu": each(tf.nn.relu), "Tanh": each(tf.tanh),
    "Sigmoid": each(tf.sigmoid), "Sin": each(tf.sin), "Cos": each(tf.cos), "Identity": each(tf.identity),
    "LeakyRelu": lambda n, x: each(lambda t: tf.nn.leaky_relu(t, n.get("alpha", 0.01)))(n, x),
    "PRelu": each(lambda x, slope: tf.maximum(x, 0.0) + slope * tf.minimum(x, 0.0)),
    "Greater": each(tf.greater), "GreaterOrEqual": each(tf.greater_equal), "Less": each(tf.less),
    "LessOrEqual": each(tf.less_equal), "Equal": each(tf.equal), "And": each(tf.logical_and),
    "Or": each(tf.logical_or), "Not": each(tf.logical_not), "Where": each(tf.where),
    "Cast": lambda n, x: each(lambda t: tf.cast(t, KINDS[n.get("to", 1)]))(n, x),
    "CastLike": each(lambda x, like: tf.cast(x, like.dtype)), "Erf": each(error_function),
    "Clip": clip, "Conv": convolution, "ConvTranspose": transposed_convolution, "Gemm": gemm,
    "MatMul": lambda n, a, b: Value(tf.matmul(a.plain, b.plain)), "AveragePool": pool, "MaxPool": pool,
    "GlobalAveragePool": lambda n, x: Value(last=tf.reduce_mean(x.last, [1, 2], True)),
    "ReduceMean": reduce, "ReduceSum": reduce, "ReduceMax": reduce, "ReduceMin": reduce, "ReduceL2": reduce,
    "Slice": cut, "Pad": pad, "Concat": join, "Split": split, "LayerNormalization": normalise,
    "InstanceNormalization": instances,
    "DepthToSpace": blocks, "SpaceToDepth": blocks,
    "Softmax": lambda n, x: Value(tf.nn.softmax(x.plain, n.get("axis", -1))),
    "Transpose": lambda n, x: Value(tf.transpose(x.plain, n.get("perm", None))),
    "Expand": lambda n, x, *_: Value(tf.broadcast_to(x.plain, n.shapes[0])),
    "Gather": lambda n, x, *_: Value(tf.gather(x.plain, n.constant(1), axis=n.get("axis", 0))),
    "QuantizeLinear": rounded, "DequantizeLinear": lambda n, x, *_: x,
    "Reshape": reshape, "Unsqueeze": reshape, "Squeeze": reshape, "Flatten": reshape,
}  # fmt: skip


def main(folder: str, wanted: str = "") -> None:
    with open(f"{folder}/plan.json", encoding="utf-8") as stream:
        plan = json.load(stream)
    weights = dict(np.load(f"{folder}/weights.npz"))
    nodes = [Node(given, weights) for given in plan["nodes"]]
    if missing := sorted({node.kind for node in nodes} - set(OPERATORS)):
        sys.exit(f"error: no form of {', '.join(missing)}")

    def forward(image: T) -> dict[str, T]:
        values: dict[str, Value] = {plan["input"]: Value(last=image)}
        values |= {name: Value(tf.constant(array)) for name, array in weights.items()}
        for node in nodes:
            made = OPERATORS[node.kind](node, *(values[name] for name in node.inputs if name))
            values.update(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))
        return {plan["output"]: values[plan["output"]].last}

    _, channels, height, width = plan["shape"]
    function = tf.function(
        forward, input_signature=[tf.TensorSpec([1, height, width, channels], tf.float32, plan["input"])]
    )
    files = {"model.tflite": "", "model_fp16.tflite": "half"} if not wanted else {f"model_{wanted}.tflite": wanted}
    for name, how in files.items():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if how:  # integers where the graph has marks, float16 where that is asked for
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if how == "half":
            converter.target_spec.supported_types = [tf.float16]
        with open(f"{folder}/{name}", "wb") as file:
            file.write(converter.convert())


if __name__ == "__main__":
    main(*sys.argv[1:])
