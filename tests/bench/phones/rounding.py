"""Where float32 runs out of digits: the graph of a forced expert in float64, beside ONNX Runtime and a host in float32.

``python -m tests.bench.phones.rounding NAME EXPERT [MODEL]`` (NAME: litert, mnn, ...; EXPERT from 1): how far each
answer is from float64, and the nodes at which ONNX Runtime itself is off by more than 1e-3 of the largest value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from clusir.export.formats.hosts.base import Array
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import hosts_of, open_source
from clusir.export.formats.hosts.form import host_form, reference
from clusir.export.graph.index import inferred
from clusir.export.graph.session import Probe
from clusir.runtimes.runners.files import find_model
from tests.bench.phones.forcing import everywhere, forced, marked, routed

SHOWN = 1e-3


def convolution(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    rank = given[1].dim() - 2
    pads = a.get("pads", [0] * 2 * rank)
    around = [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])]
    run: Callable[..., Tensor] = F.conv2d if rank == 2 else F.conv1d
    return run(F.pad(given[0], around), *given[1:], stride=a.get("strides", [1] * rank),
               dilation=a.get("dilations", [1] * rank), groups=a.get("group", 1))  # fmt: skip


def transposed(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    pads = a.get("pads", [0] * 4)
    assert pads[:2] == pads[2:], "of one border only"
    return F.conv_transpose2d(*given, stride=a.get("strides", [1, 1]), padding=pads[:2], groups=a.get("group", 1))  # type: ignore[arg-type]


def cells(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    size, x = a["blocksize"], given[0]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // size**2, height * size, width * size)


def cut(given: list[Tensor], _: dict[str, Any]) -> Tensor:
    x = given[0].numpy()
    starts, ends = (tensor.tolist() for tensor in given[1:3])
    axes = given[3].tolist() if len(given) > 3 else range(len(starts))
    steps = given[4].tolist() if len(given) > 4 else [1] * len(starts)
    places = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, end if end > -(2**31) else None, step)
    return torch.from_numpy(x[tuple(places)].copy())


def padded(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    amounts = given[1].numpy().reshape(2, -1).T
    return torch.from_numpy(np.pad(given[0].numpy(), amounts, mode=a.get("mode", b"constant").decode()))


def split(given: list[Tensor], a: dict[str, Any]) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    sizes = given[1].tolist() if len(given) > 1 else given[0].shape[axis] // a["num_outputs"]
    return torch.split(given[0], sizes, axis)


def gather(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    return torch.from_numpy(np.take(given[0].numpy(), given[1].numpy(), axis=a.get("axis", 0)))


def total(given: list[Tensor], a: dict[str, Any]) -> Tensor:
    axes = given[1].tolist() if len(given) > 1 else list(range(given[0].dim()))
    return given[0].sum(axes, bool(a.get("keepdims", 1)))


OPERATORS: dict[str, Callable[[list[Tensor], dict[str, Any]], Any]] = {
    "Conv": convolution, "ConvTranspose": transposed, "DepthToSpace": cells, "Slice": cut, "Pad": padded,
    "Split": split, "Gather": gather, "Add": lambda x, _: x[0] + x[1], "Sub": lambda x, _: x[0] - x[1],
    "Mul": lambda x, _: x[0] * x[1], "MatMul": lambda x, _: x[0] @ x[1], "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Reshape": lambda x, _: x[0].reshape([x[0].shape[k] if n == 0 else n for k, n in enumerate(x[1].tolist())]),
    "Transpose": lambda x, a: x[0].permute(a["perm"]), "Sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "Relu": lambda x, _: torch.relu(x[0]), "Tanh": lambda x, _: torch.tanh(x[0]),
    "Clip": lambda x, _: x[0].clamp(float(x[1]), float(x[2])), "Abs": lambda x, _: x[0].abs(), "ReduceSum": total,
    "Less": lambda x, _: x[0] < x[1], "Cast": lambda x, a: x[0].double() if a["to"] == 1 else x[0],
}  # fmt: skip


def in_float64(model: onnx.ModelProto, picture: Array) -> dict[str, Tensor]:
    """Every tensor of a graph with one input and no size left open."""
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    values = {name: v.double() if v.dtype == torch.float32 else v for name, v in values.items()}
    values[model.graph.input[0].name] = torch.from_numpy(picture).double()
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type not in OPERATORS:
            raise SystemExit(f"{node.op_type} is not written here in float64")
        made = OPERATORS[node.op_type]([values[name] for name in node.input if name], attributes)
        values.update(zip(node.output, made if isinstance(made, tuple) else [made], strict=True))
    return values


def in_float32(model: onnx.ModelProto, picture: Array) -> dict[str, Array]:
    """The same in ONNX Runtime, without optimisations."""
    every = onnx.ModelProto.FromString(model.SerializeToString())
    known = {v.name for v in inferred(every).value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    every.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(known))
    return Probe(every, optimise=False, threads=1).run({model.graph.input[0].name: picture})


def main(name: str, expert: str, model: str | None = None) -> None:
    (host,) = hosts_of([name])
    assert isinstance(host, Converted), f"{name} has no converter of its own"
    source = open_source(find_model(model).whole)
    from tests.bench.phones.__main__ import EVERYWHERE_ON, degraded  # which imports this file

    picture = degraded(host.form(source).side_px)[EVERYWHERE_ON]
    routing, spec = routed(source, picture)
    given = forced(source, routing, list(everywhere(spec).values()), spec)
    picture = marked(picture, int(expert) - 1)
    form = host.form(given)
    plain = host_form(given, form)
    rewritten = host.rewrite(plain)
    exact, near = in_float64(rewritten, picture), in_float32(rewritten, picture)
    right = exact[rewritten.graph.output[0].name].numpy()
    largest = max(1.0, float(np.abs(right).max()))
    with TemporaryDirectory() as folder:
        host.convert(plain, Path(folder))
        (answer,) = host.answers(Path(folder), [picture])
    print(f"largest value {largest:.1e}; differences from float64, of that:")
    for what, found in (("ONNX Runtime", reference(given, form)(picture)), (host.name, answer),
                        ("ONNX Runtime, the graph as rewritten", near[rewritten.graph.output[0].name])):  # fmt: skip
        print(f"{what}: {np.abs(found - right).max() / largest:.1e}")
    print(f"\nONNX Runtime, the graph as rewritten, off by more than {SHOWN:g} at")
    for node in rewritten.graph.node:
        for tensor in set(node.output) & set(near):
            true = exact[tensor].numpy()
            off = np.abs(near[tensor] - true).max() / max(float(np.abs(true).max()), 1e-30)
            if off > SHOWN:
                before = float(exact[node.input[0]].abs().max())
                print(f"{node.op_type} {tensor}: {off:.1e}, its input at most {before:.1e}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
