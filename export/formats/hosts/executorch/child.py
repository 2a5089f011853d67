"""``python child.py FOLDER``: ``model.pte`` from ``plan.json`` and ``weights.npz``. Runs where ExecuTorch is, and
imports nothing of clusir: it may be another environment.

The plan is an ONNX graph with every shape known, in the order in which it runs. Each operator becomes PyTorch's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Given = list[Any]  # tensors, in the order of the node's inputs; None where one is left out


class Node:
    """One operator: its attributes, its constant inputs (None for others), the shapes of its outputs."""

    def __init__(self, given: dict[str, Any], weights: dict[str, Any]) -> None:
        self.kind: str = given["op"]
        self.inputs: list[str] = given["inputs"]
        self.outputs: list[str] = given["outputs"]
        self.shapes: list[list[int]] = given["shapes"]
        self.attributes: dict[str, Any] = given["attributes"]
        self.constants = [weights.get(name) for name in self.inputs]

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def constant(self, index: int) -> Any:
        """The value of a constant input; None where it is not given."""
        if index >= len(self.inputs) or not self.inputs[index]:
            return None
        if self.constants[index] is None:
            self.refuse(f"input {index} is computed")
        return self.constants[index]

    def pads(self, rank: int) -> list[int]:
        """Of ``rank`` axes, in PyTorch's order: the last axis first, both its ends together."""
        if self.get("auto_pad", "NOTSET") != "NOTSET":
            self.refuse("auto_pad is not written out")
        given = self.get("pads", [0] * 2 * rank)
        return [int(given[end + axis]) for axis in reversed(range(rank)) for end in (0, rank)]

    def refuse(self, why: str) -> None:
        sys.exit(f"error: {self.kind} {self.outputs[0]}: {why}")


def convolution(node: Node, x: Given) -> Tensor:
    rank = x[1].dim() - 2
    around, run = node.pads(rank), F.conv2d if rank == 2 else F.conv1d
    even = around[::2] == around[1::2]
    given = x[0] if even else F.pad(x[0], around)
    made: Tensor = run(
        given, x[1], x[2] if len(x) > 2 else None, node.get("strides", [1] * rank),
        around[::2][::-1] if even else [0] * rank, node.get("dilations", [1] * rank), node.get("group", 1),
    )  # fmt: skip
    return made


def transposed_convolution(node: Node, x: Given) -> Tensor:
    if (
        set(node.get("dilations", [1])) != {1}
        or any(node.get("output_padding", [0]))
        or "output_shape" in node.attributes
    ):
        node.refuse("dilations, output_padding and output_shape have no form here")
    left, right, top, bottom = node.pads(2)
    bias = x[2] if len(x) > 2 else None
    whole = F.conv_transpose2d(x[0], x[1], bias, node.get("strides", [1, 1]), 0, 0, node.get("group", 1))
    height, width = whole.shape[2:]
    return whole[:, :, top : height - bottom, left : width - right]


def pool(node: Node, x: Given) -> Tensor:
    if node.get("ceil_mode", 0) or set(node.get("dilations", [1])) != {1}:
        node.refuse("ceil_mode and dilations have no form here")
    kernel, around = node.get("kernel_shape", None), node.pads(2)
    strides, mean = node.get("strides", [1, 1]), node.kind == "AveragePool"
    value = 0.0 if mean else float(np.finfo(np.float32).min)
    given = F.pad(x[0], around, value=value) if any(around) else x[0]
    out = F.avg_pool2d(given, kernel, strides) if mean else F.max_pool2d(given, kernel, strides)
    if mean and any(around) and not node.get("count_include_pad", 0):
        inside = np.pad(np.ones(x[0].shape[2:]), (around[2:], around[:2]))
        windows = np.lib.stride_tricks.sliding_window_view(inside, kernel)[:: strides[0], :: strides[1]]
        out = out * torch.from_numpy((1 / windows.mean((2, 3))).astype(np.float32))
    return out


def gemm(node: Node, x: Given) -> Tensor:
    a, b = (t.transpose(0, 1) if node.get(flag, 0) else t for t, flag in ((x[0], "transA"), (x[1], "transB")))
    out: Tensor = (a @ b) * node.get("alpha", 1.0)
    return out if len(x) < 3 else out + x[2] * node.get("beta", 1.0)


def reduce(node: Node, x: Given) -> Tensor:
    axes = node.get("axes", None) if len(node.inputs) < 2 else node.constant(1)
    if axes is None and node.get("noop_with_empty_axes", 0):
        return x[0]
    over = list(range(x[0].dim())) if axes is None else [int(axis) for axis in axes]
    keep = bool(node.get("keepdims", 1))
    if node.kind == "ReduceL2":
        return torch.sqrt((x[0] * x[0]).sum(over, keep))
    run = {"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin}
    made: Tensor = run[node.kind](x[0], over, keep)  # type: ignore[operator]
    return made


def cut(node: Node, x: Given) -> Tensor:
    starts, ends, axes, steps = (node.constant(index) for index in (1, 2, 3, 4))
    out: Tensor = x[0]
    for index, axis in enumerate(range(len(starts)) if axes is None else [int(axis) for axis in axes]):
        step = 1 if steps is None else int(steps[index])
        places = range(*slice(int(starts[index]), int(ends[index]), step).indices(out.shape[axis]))
        if step == 1:
            out = out.narrow(axis, places.start, len(places))
        else:
            out = out.index_select(axis, torch.tensor(list(places)))
    return out


def pad(node: Node, x: Given) -> Tensor:
    amounts, mode = np.asarray(node.constant(1)).reshape(2, -1), node.get("mode", "constant")
    if mode not in ("constant", "reflect") or len(node.inputs) > 3 or (amounts < 0).any():
        node.refuse("only constant and reflect, of all axes and not negative, have a form here")
    out: Tensor = x[0]
    if mode == "constant":
        fill = node.constant(2)
        around = [int(n) for pair in amounts.T[::-1] for n in pair]
        return F.pad(out, around, value=0.0 if fill is None else float(np.asarray(fill).reshape(())))
    for axis, (before, after) in enumerate(amounts.T):
        if before or after:
            places = np.pad(np.arange(out.shape[axis]), (before, after), mode="reflect")
            out = out.index_select(axis, torch.from_numpy(places))
    return out


def blocks(node: Node, x: Given) -> Tensor:
    size, given = node.get("blocksize", 1), x[0]
    if node.kind == "DepthToSpace" and node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(given, size)
    batch, channels, height, width = given.shape
    if node.kind == "SpaceToDepth":
        parts = given.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(batch, channels * size**2, height // size, width // size)
    parts = given.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // size**2, height * size, width * size)


def split(node: Node, x: Given) -> list[Tensor]:
    axis, start, parts = node.get("axis", 0), 0, []
    for shape in node.shapes:
        parts.append(x[0].narrow(axis, start, shape[axis]))
        start += shape[axis]
    return parts


def gather(node: Node, x: Given) -> Tensor:
    axis, places = node.get("axis", 0), np.asarray(node.constant(1), np.int64)
    axis, length = axis % x[0].dim(), x[0].shape[axis]
    found = x[0].index_select(axis, torch.from_numpy(places.reshape(-1) % length))
    return found.reshape(*x[0].shape[:axis], *places.shape, *x[0].shape[axis + 1 :])


def normalise(node: Node, x: Given) -> Tensor:
    given = x[0]
    axes = list(range(node.get("axis", -1) % given.dim(), given.dim()))
    out = standard(given, axes, node.get("epsilon", 1e-5)) * x[1]
    return out if len(x) < 3 else out + x[2]


def instances(node: Node, x: Given) -> Tensor:
    given = x[0]
    channels = [1, -1] + [1] * (given.dim() - 2)
    out = standard(given, list(range(2, given.dim())), node.get("epsilon", 1e-5))
    return out * x[1].reshape(channels) + x[2].reshape(channels)


def standard(given: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = given - given.mean(axes, True)
    return centred * torch.rsqrt((centred * centred).mean(axes, True) + epsilon)


def clip(node: Node, x: Given) -> Tensor:
    low, high = (None if n is None else float(np.asarray(n).reshape(())) for n in (node.constant(1), node.constant(2)))
    return torch.clamp(x[0], low, high)


def several(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Given], Tensor]:
    def run(_: Node, x: Given) -> Tensor:
        out: Tensor = x[0]
        for other in x[1:]:
            out = function(out, other)
        return out

    return run


def each(function: Callable[..., Tensor]) -> Callable[[Node, Given], Tensor]:
    return lambda _, x: function(*x)


def reshape(node: Node, x: Given) -> Tensor:
    made: Tensor = x[0].reshape(node.shapes[0])
    return made


KINDS = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
OPERATORS: dict[str, Callable[[Node, Given], Any]] = {
    "Add": each(torch.add), "Sub": each(torch.sub), "Mul": each(torch.mul), "Div": each(torch.div),
    "Max": several(torch.maximum), "Min": several(torch.minimum), "Pow": each(torch.pow), "Abs": each(torch.abs),
    "Neg": each(torch.neg), "Exp": each(torch.exp), "Log": each(torch.log), "Sqrt": each(torch.sqrt),
    "Reciprocal": each(torch.reciprocal), "Relu": each(torch.relu), "Tanh": each(torch.tanh), "Erf": each(torch.erf),
    "Sigmoid": each(torch.sigmoid), "Sin": each(torch.sin), "Cos": each(torch.cos), "Identity": each(lambda t: t),
    "LeakyRelu": lambda n, x: F.leaky_relu(x[0], n.get("alpha", 0.01)),
    "PRelu": each(lambda t, slope: torch.clamp(t, min=0.0) + slope * torch.clamp(t, max=0.0)),
    "Greater": each(torch.gt), "GreaterOrEqual": each(torch.ge), "Less": each(torch.lt), "LessOrEqual": each(torch.le),
    "Equal": each(torch.eq), "And": each(torch.logical_and), "Or": each(torch.logical_or),
    "Not": each(torch.logical_not), "Where": each(torch.where), "Clip": clip, "Conv": convolution,
    "Cast": lambda n, x: x[0].to(KINDS[n.get("to", 1)]), "CastLike": each(lambda t, like: t.to(like.dtype)),
    "ConvTranspose": transposed_convolution, "Gemm": gemm, "MatMul": each(torch.matmul), "AveragePool": pool,
    "MaxPool": pool, "GlobalAveragePool": each(lambda t: t.mean(list(range(2, t.dim())), True)),
    "ReduceMean": reduce, "ReduceSum": reduce, "ReduceMax": reduce, "ReduceMin": reduce, "ReduceL2": reduce,
    "Slice": cut, "Pad": pad, "Concat": lambda n, x: torch.cat(x, n.get("axis", 0)), "Split": split, "Gather": gather,
    "LayerNormalization": normalise, "InstanceNormalization": instances, "DepthToSpace": blocks,
    "SpaceToDepth": blocks, "Softmax": lambda n, x: torch.softmax(x[0], n.get("axis", -1)),
    "Transpose": lambda n, x: x[0].permute(n.get("perm", list(range(x[0].dim()))[::-1])),
    "Expand": lambda n, x: x[0].expand(n.shapes[0]),
    "Reshape": reshape, "Unsqueeze": reshape, "Squeeze": reshape, "Flatten": reshape,
}  # fmt: skip


class Network(nn.Module):
    """The plan, picture 1xCxHxW to picture."""

    def __init__(self, plan: dict[str, Any], weights: dict[str, Any]) -> None:
        super().__init__()
        self.given, self.answer = plan["input"], plan["output"]
        self.nodes = [Node(node, weights) for node in plan["nodes"]]
        if missing := sorted({node.kind for node in self.nodes} - set(OPERATORS)):
            sys.exit(f"error: no form of {', '.join(missing)}")
        self.names = {name: f"constant_{index}" for index, name in enumerate(weights)}
        for name, place in self.names.items():
            self.register_buffer(place, torch.from_numpy(np.array(weights[name])))

    def forward(self, image: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self.given: image}
        for name, place in self.names.items():
            values[name] = getattr(self, place)
        for node in self.nodes:
            made = OPERATORS[node.kind](node, [values[name] for name in node.inputs if name])
            values.update(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))
        return values[self.answer]


def main(folder: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with open(f"{folder}/plan.json", encoding="utf-8") as stream:
        plan = json.load(stream)
    network = Network(plan, dict(np.load(f"{folder}/weights.npz"))).eval()
    with torch.no_grad():
        program = torch.export.export(network, (torch.zeros(plan["shape"]),))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    with open(f"{folder}/model.pte", "wb") as file:
        file.write(edge.to_executorch().buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
