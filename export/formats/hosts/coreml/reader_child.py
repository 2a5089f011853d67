"""``python reader_child.py FOLDER COUNT``: what the program in ``model.mlpackage`` makes of ``INDEX.npy``, to
``INDEX.out.npy``. Runs where coremltools is (its protobuf classes alone are used), and imports nothing of clusir.

Core ML runs on Apple's systems only. This reads the file that was written, weights included, and computes it in numpy
as the documentation of ``coremltools.converters.mil.mil.ops.defs`` has it; an operator that it does not know is an
error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import erf, pi, sqrt
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2

A = Any  # an array
ROOT = "model.mlpackage/Data/com.apple.CoreML/"
_MARK, _FLOAT32, _FLOAT16 = 0xDEADBEEF, 2, 1


def blob(content: bytes, offset: int) -> A:
    """Weights in ``weight.bin``: at ``offset`` a mark, their type, their length in bytes and where they begin."""
    mark, kind = np.frombuffer(content, "<u4", 2, offset)
    size, start = np.frombuffer(content, "<u8", 2, offset + 8)
    if mark != _MARK or kind not in (_FLOAT32, _FLOAT16):
        sys.exit(f"error: weights of type {kind} at {offset}")
    kinds = {_FLOAT32: "<f4", _FLOAT16: "<f2"}
    return np.frombuffer(content[int(start) : int(start + size)], kinds[int(kind)])


def constant(value: Any, weights: bytes) -> A:
    kind = value.type.tensorType
    shape = [dim.constant.size for dim in kind.dimensions]
    if value.WhichOneof("value") == "blobFileValue":
        return blob(weights, value.blobFileValue.offset).reshape(shape)
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field == "bytes":
        name = MIL_pb2.DataType.Name(kind.dataType)
        if name not in ("FLOAT16", "INT16", "UINT16", "INT8", "UINT8", "UINT32"):
            sys.exit(f"error: a constant of {name}")
        return np.frombuffer(tensor.bytes.values, name.lower()).reshape(shape)
    values = list(getattr(tensor, field).values)
    if field == "strings":
        return values[0] if not shape else values
    kinds = {"floats": np.float32, "ints": np.int32, "bools": np.bool_, "longInts": np.int64, "doubles": np.float64}
    return np.array(values, kinds[field]).reshape(shape)


def windows(x: A, i: dict[str, A], kernel: tuple[int, ...], fill: float) -> list[A]:
    """For each place in the kernel, what stands under it: maps as large as the answer."""
    rank = len(kernel)
    stride, dilation = i["strides"].tolist(), i.get("dilations", np.ones(rank, int)).tolist()
    pad = i["pad"].reshape(rank, 2) if "pad" in i and i["pad_type"] == "custom" else np.zeros((rank, 2), int)
    if i["pad_type"] not in ("custom", "valid"):
        sys.exit(f"error: padding {i['pad_type']}")
    x = np.pad(x, [(0, 0), (0, 0), *pad.tolist()], constant_values=fill)
    out = [
        (side - d * (k - 1) - 1) // s + 1 for side, d, k, s in zip(x.shape[2:], dilation, kernel, stride, strict=True)
    ]
    found = []
    for place in np.ndindex(*kernel):
        cut = [
            slice(p * d, p * d + (o - 1) * s + 1, s) for p, d, o, s in zip(place, dilation, out, stride, strict=True)
        ]
        found.append(x[(slice(None), slice(None), *cut)])
    return found


def conv(i: dict[str, A]) -> A:
    x, weight, groups = i["x"], i["weight"], int(i.get("groups", 1))
    kernel = weight.shape[2:]
    taps = windows(x, i, kernel, 0)
    outputs, inside = weight.shape[:2]
    flat = weight.reshape(groups, outputs // groups, inside, -1)
    total: A = 0
    for number, tap in enumerate(taps):
        given = np.ascontiguousarray(tap).reshape(x.shape[0], groups, inside, -1)
        total = total + flat[None, :, :, :, number] @ given
    out = total.reshape(x.shape[0], outputs, *taps[0].shape[2:])
    return out + i["bias"].reshape(1, -1, *[1] * len(kernel)) if "bias" in i else out


def conv_transpose(i: dict[str, A]) -> A:
    x, weight, groups = i["x"], i["weight"], int(i.get("groups", 1))
    kernel, stride = weight.shape[2:], i["strides"].tolist()
    dilation = i.get("dilations", np.ones(len(kernel), int)).tolist()
    inside, outside = weight.shape[0] // groups, weight.shape[1]
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x.shape[2:], stride, dilation, kernel, strict=True)]
    total = np.zeros((x.shape[0], groups * outside, *whole), x.dtype)
    given = x.reshape(x.shape[0], groups, inside, -1)
    flat = weight.reshape(groups, inside, outside, *kernel)
    for place in np.ndindex(*kernel):
        made = flat[(None, slice(None), slice(None), slice(None), *place)].swapaxes(-1, -2) @ given
        cut = [slice(p * d, p * d + (n - 1) * s + 1, s)
               for p, d, n, s in zip(place, dilation, x.shape[2:], stride, strict=True)]  # fmt: skip
        total[(slice(None), slice(None), *cut)] += made.reshape(x.shape[0], -1, *x.shape[2:])
    pad = i["pad"].reshape(-1, 2) if "pad" in i and i["pad_type"] == "custom" else np.zeros((len(kernel), 2), int)
    out = total[(slice(None), slice(None), *[slice(b, n - a) for (b, a), n in zip(pad, whole, strict=True)])]
    if "output_shape" in i and list(i["output_shape"]) != list(out.shape):
        sys.exit("error: conv_transpose has another shape than it says")
    return out + i["bias"].reshape(1, -1, *[1] * len(kernel)) if "bias" in i else out


def avg_pool(i: dict[str, A]) -> A:
    kernel = tuple(i["kernel_sizes"].tolist())
    total = sum(windows(i["x"], i, kernel, 0))
    if i.get("exclude_padding_from_average", False):
        return total / sum(windows(np.ones_like(i["x"]), i, kernel, 0))
    return total / np.float32(np.prod(kernel))


def max_pool(i: dict[str, A]) -> A:
    return np.maximum.reduce(windows(i["x"], i, tuple(i["kernel_sizes"].tolist()), -np.inf))


def pixel_shuffle(i: dict[str, A]) -> A:
    x, r = i["x"], int(i["upscale_factor"])
    n, c, h, w = x.shape
    return x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)


def pixel_unshuffle(i: dict[str, A]) -> A:
    x, r = i["x"], int(i["downscale_factor"])
    n, c, h, w = x.shape
    return x.reshape(n, c, h // r, r, w // r, r).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * r**2, h // r, w // r)


def cut(i: dict[str, A]) -> A:
    if np.any(i.get("squeeze_mask", False)):
        sys.exit("error: slice_by_index with squeeze_mask")
    places = []
    for axis, side in enumerate(i["x"].shape):
        begin, end = int(i["begin"][axis]), int(i["end"][axis])
        whole = [bool(i[mask][axis]) if mask in i else False for mask in ("begin_mask", "end_mask")]
        step = int(i["stride"][axis]) if "stride" in i else 1
        places.append(slice(None if whole[0] else begin, None if whole[1] else min(end, side), step))
    return i["x"][tuple(places)]


def pad(i: dict[str, A]) -> A:
    amounts = i["pad"].reshape(-1, 2).tolist()
    whole = [(0, 0)] * (i["x"].ndim - len(amounts)) + [tuple(pair) for pair in amounts]
    if i["mode"] == "constant":
        return np.pad(i["x"], whole, constant_values=i["constant_val"])
    return np.pad(i["x"], whole, "reflect" if i["mode"] == "reflect" else "edge")


def softmax(i: dict[str, A]) -> A:
    axis = int(i["axis"])
    power = np.exp(i["x"] - i["x"].max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def matmul(i: dict[str, A]) -> A:
    x, y = i["x"], i["y"]
    x = x.swapaxes(-1, -2) if i.get("transpose_x", False) else x
    return x @ (y.swapaxes(-1, -2) if i.get("transpose_y", False) else y)


def gather(i: dict[str, A]) -> A:
    if int(i.get("batch_dims", 0)):
        sys.exit("error: gather with batch_dims")
    return np.take(i["x"], i["indices"].astype(int), axis=int(i.get("axis", 0)))


def split(i: dict[str, A]) -> list[A]:
    sizes = i.get("split_sizes")
    parts = int(i["num_splits"]) if sizes is None else np.cumsum(sizes)[:-1].tolist()
    return list(np.split(i["x"], parts, int(i["axis"])))


def summed(function: Callable[..., A]) -> Callable[[dict[str, A]], A]:
    def run(i: dict[str, A]) -> A:
        axes = tuple(int(axis) for axis in i["axes"]) if "axes" in i else None
        return function(i["x"], axis=axes, keepdims=bool(i.get("keep_dims", False)))

    return run


def sigmoid(x: A) -> A:
    return 1 / (1 + np.exp(-np.clip(x, -87, 87)))


def gelu(i: dict[str, A]) -> A:
    x = i["x"]
    if i.get("mode", "EXACT") == "EXACT":
        return (0.5 * x * (1 + ERF(x / sqrt(2)))).astype(x.dtype)
    return (0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))).astype(x.dtype)


def batch_norm(i: dict[str, A]) -> A:
    shape = [1, -1] + [1] * (i["x"].ndim - 2)
    deviation = np.sqrt(i["variance"] + i["epsilon"])
    out = (i["x"] - i["mean"].reshape(shape)) / deviation.reshape(shape)
    return out * i["gamma"].reshape(shape) + i["beta"].reshape(shape)


def x_of(function: Callable[[A], A]) -> Callable[[dict[str, A]], A]:
    return lambda i: function(i["x"])


def of_two(function: Callable[[A, A], A]) -> Callable[[dict[str, A]], A]:
    return lambda i: function(i["x"], i["y"])


def joined(i: dict[str, A]) -> A:
    if i.get("interleave", False):
        sys.exit("error: concat with interleave")
    return np.concatenate(i["values"], int(i["axis"]))


ERF = np.vectorize(erf, otypes=[np.float32])
CASTS = {"fp32": np.float32, "int32": np.int32, "bool": np.bool_, "fp16": np.float16}
OPERATORS: dict[str, Callable[[dict[str, A]], Any]] = {
    "add": of_two(np.add), "sub": of_two(np.subtract), "mul": of_two(np.multiply), "real_div": of_two(np.divide),
    "maximum": of_two(np.maximum), "minimum": of_two(np.minimum), "pow": of_two(np.power),
    "greater": of_two(np.greater), "greater_equal": of_two(np.greater_equal), "less": of_two(np.less),
    "less_equal": of_two(np.less_equal), "equal": of_two(np.equal), "logical_and": of_two(np.logical_and),
    "logical_or": of_two(np.logical_or), "logical_not": x_of(np.logical_not), "abs": x_of(np.abs),
    "exp": x_of(np.exp), "sqrt": x_of(np.sqrt), "sin": x_of(np.sin), "cos": x_of(np.cos), "floor": x_of(np.floor),
    "ceil": x_of(np.ceil), "square": x_of(np.square), "tanh": x_of(np.tanh), "erf": x_of(ERF),
    "relu": x_of(lambda x: np.maximum(x, 0)), "sigmoid": x_of(sigmoid), "silu": x_of(lambda x: x * sigmoid(x)),
    "identity": x_of(lambda x: x), "gelu": gelu, "log": lambda i: np.log(i["x"] + i["epsilon"]),
    "clip": lambda i: np.clip(i["x"], i["alpha"], i["beta"]), "cast": lambda i: i["x"].astype(CASTS[i["dtype"]]),
    "select": lambda i: np.where(i["cond"], i["a"], i["b"]), "conv": conv, "conv_transpose": conv_transpose,
    "avg_pool": avg_pool, "max_pool": max_pool, "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    "matmul": matmul, "slice_by_index": cut, "pad": pad, "softmax": softmax, "gather": gather, "split": split,
    "linear": lambda i: i["x"] @ i["weight"].T + i.get("bias", np.float32(0)), "concat": joined,
    "transpose": lambda i: i["x"].transpose(i["perm"].tolist()), "tile": lambda i: np.tile(i["x"], i["reps"].tolist()),
    "reshape": lambda i: i["x"].reshape(i["shape"].tolist()), "reduce_mean": summed(np.mean),
    "squeeze": lambda i: i["x"].squeeze(tuple(i["axes"].tolist())),
    "expand_dims": lambda i: np.expand_dims(i["x"], tuple(i["axes"].tolist())),
    "reduce_sum": summed(np.sum), "reduce_max": summed(np.max), "reduce_min": summed(np.min),
    "reduce_l2_norm": summed(lambda x, **how: np.sqrt(np.sum(np.square(x), **how))),
    "batch_norm": batch_norm, "leaky_relu": lambda i: np.where(i["x"] > 0, i["x"], i["x"] * i["alpha"]),
}  # fmt: skip


def main(folder: str, count: int) -> None:
    with open(f"{folder}/{ROOT}model.mlmodel", "rb") as stream:
        model = Model_pb2.Model.FromString(stream.read())
    try:
        with open(f"{folder}/{ROOT}weights/weight.bin", "rb") as stream:
            weights = stream.read()
    except FileNotFoundError:  # all of them are small
        weights = b""
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    names = [value.name for value in model.description.input], [value.name for value in model.description.output]
    if names != (["image"], ["restored"]) or list(block.outputs) != names[1]:
        sys.exit(f"error: its tensors are {names}")
    if unknown := sorted({step.type for step in block.operations} - set(OPERATORS) - {"const"}):
        sys.exit(f"error: the reader does not know {', '.join(unknown)}")
    fixed = {step.outputs[0].name: constant(step.attributes["val"], weights)
             for step in block.operations if step.type == "const"}  # fmt: skip
    for index in range(count):
        values: dict[str, A] = {"image": np.load(f"{folder}/{index}.npy")}
        for step in block.operations:
            if step.type == "const":
                continue
            given: dict[str, A] = {}
            for key, bound in step.inputs.items():
                read = [
                    constant(one.value, weights) if one.WhichOneof("binding") == "value"
                    else fixed[one.name] if one.name in fixed else values[one.name] for one in bound.arguments
                ]  # fmt: skip
                given[key] = read if key == "values" else read[0]
            made = OPERATORS[step.type](given)
            for out, value in zip(step.outputs, made if isinstance(made, list) else [made], strict=True):
                said = [dim.constant.size for dim in out.type.tensorType.dimensions]
                if list(np.shape(value)) != said:
                    sys.exit(f"error: {step.type} {out.name} is {list(np.shape(value))}, the program says {said}")
                values[out.name] = value
        np.save(f"{folder}/{index}.out.npy", np.ascontiguousarray(values["restored"], np.float32))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
