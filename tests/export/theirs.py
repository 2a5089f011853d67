"""Small ONNX files as other tools write them, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from clusir.export.adopt import Adoption, AdoptionConfig, adopt
from clusir.export.subjects.onnx_file import Description
from clusir.runtimes import open_runner

rng = np.random.default_rng(5)
KERNEL = np.zeros((3, 3, 3, 3), np.float32)
for channel in range(3):
    KERNEL[channel, channel] = 0.05
    KERNEL[channel, channel, 1, 1] = 0.6
KERNEL[0, 2, 1, 1] = 0.1  # red takes a little blue: an order of channels that is mistaken shows


def constant(name: str, values: object, kind: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[TensorProto],
    *,
    shape: Sequence[object] = (None, 3, None, None),
    answer: Sequence[object] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    more: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:
    """A graph ``x`` -> ``y``; None in a shape is an open axis."""
    graph = helper.make_graph(
        list(nodes),
        "theirs",
        [helper.make_tensor_value_info("x", kind, list(shape)), *more],
        list(outputs) or [helper.make_tensor_value_info("y", kind, list(answer or shape))],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def conv(source: str = "x", target: str = "y", kernel: str = "k") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, kernel], [target], pads=[1, 1, 1, 1])


def plain(path: Path, **options: object) -> Path:
    return write(path, [conv()], [constant("k", KERNEL)], **options)  # type: ignore[arg-type]


def expected(picture: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return nn.functional.conv2d(torch.from_numpy(picture), torch.from_numpy(KERNEL), padding=1).numpy()


def adopted(source: Path, **options: object) -> Adoption:
    told = Description(**options)  # type: ignore[arg-type]
    return adopt(source, source.with_name("ours.onnx"), AdoptionConfig(told))


def answer(made: Adoption, picture: np.ndarray) -> np.ndarray:
    with open_runner(made.path, "ort", "cpu", 1) as runner:
        return runner.run({"image": picture})["restored"]


PICTURE = rng.random((1, 3, 64, 80), dtype=np.float32)
