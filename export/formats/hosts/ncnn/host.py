"""ncnn as a host: the two files, and ncnn's own Python package that runs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.integers import IntegerGraph, without_rounding
from clusir.export.formats.hosts.ncnn.layers import Layers
from clusir.export.formats.hosts.ncnn.maps import MAPS, resizes
from clusir.export.formats.hosts.ncnn.operators import OPERATORS, Node
from clusir.export.graph.index import inferred

__all__ = ["Ncnn", "written"]

# Without these ncnn keeps what lies between two layers in float16 or bfloat16 where the processor has it.
_RUNNER = """
import sys
import ncnn, numpy
folder, count = sys.argv[1], int(sys.argv[2])
with ncnn.Net() as net:
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(folder + "/model.param") or net.load_model(folder + "/model.bin"):
        sys.exit("error: it does not load")
    for index in range(count):
        image = numpy.load(f"{folder}/{index}.npy")
        with net.create_extractor() as run:
            run.input("input", ncnn.Mat(numpy.ascontiguousarray(image[0])).clone())
            code, out = run.extract("output")
            if code:
                sys.exit(f"error: it ends with {code}")
            numpy.save(f"{folder}/{index}.out.npy", numpy.array(out)[None])
"""


class Ncnn(Converted):
    """``model.param`` with ``model.bin``, or with ``model_fp16.bin``: weights of convolutions and of products with a
    constant in float16; and ``model_int8.param`` with ``model_int8.bin``: dense convolutions in integers. ncnn's own
    converter is not asked."""

    name: ClassVar[str] = "ncnn"
    module: ClassVar[str] = "ncnn"
    variable: ClassVar[str] = "CLUSIR_NCNN"
    install: ClassVar[str] = "ncnn numpy"
    files: ClassVar[tuple[str, ...]] = ("model.param", "model.bin")
    half: ClassVar[tuple[tuple[str, str], ...]] = (("model_fp16.bin", "model.bin"),)
    integers: ClassVar[tuple[tuple[str, str], ...]] = (
        ("model_int8.param", "model.param"),
        ("model_int8.bin", "model.bin"),
    )
    no_int8: ClassVar[str] = ""
    converter: ClassVar[str] = ""
    runner: ClassVar[str] = _RUNNER

    def keeps(self, node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if node.op_type == "Resize":
            return resizes(node, shapes[node.input[0]], shapes[node.output[0]])
        return node.op_type in OPERATORS or node.op_type in MAPS

    def convert(self, model: ModelProto, folder: Path) -> None:
        rewritten = self.rewrite(model)
        text, content = written(rewritten)
        (folder / "model.param").write_text(text, encoding="utf-8")
        (folder / "model.bin").write_bytes(content)
        (folder / "model_fp16.bin").write_bytes(written(rewritten, half=True)[1])

    def convert_int8(self, graph: IntegerGraph, folder: Path) -> None:
        model, peaks = without_rounding(graph)
        text, content = written(model, rounded={name: (graph.steps[name], peak) for name, peak in peaks.items()})
        (folder / "model_int8.param").write_text(text, encoding="utf-8")
        (folder / "model_int8.bin").write_bytes(content)


def written(
    model: ModelProto, half: bool = False, rounded: Mapping[str, tuple[NDArray[np.float32], float]] | None = None
) -> tuple[str, bytes]:
    """The text and the weights of a graph in the host form; ``rounded``: see :class:`Layers`. Raises Refused for what
    ncnn has no layers for."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes: dict[str, list[int]] = {name: list(array.shape) for name, array in constants.items()}
    notes = inferred(model)
    for value in (*notes.value_info, *graph.input, *graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*notes.value_info, *graph.input)}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if tensor is None:
                raise Refused(f"Constant {node.output[0]} holds no tensor")
            constants[node.output[0]] = numpy_helper.to_array(tensor)
            shapes[node.output[0]] = list(tensor.dims)
        elif node.op_type == "CastLike":
            nodes.append(helper.make_node("Cast", node.input[:1], node.output, to=types.get(node.input[1], 1)))
        else:
            nodes.append(node)
    known = OPERATORS | MAPS
    if missing := sorted({node.op_type for node in nodes} - set(known)):
        raise Refused(f"no layers for {', '.join(missing)}")
    for node in nodes:
        if unknown := [name for name in node.output if name and math.prod(shapes.get(name, [0])) == 0]:
            raise Refused(f"the shape of {unknown[0]} is not known")
    given, answer = graph.input[0].name, graph.output[0].name
    layers = Layers(shapes, {name: np.asarray(array) for name, array in constants.items()}, rounded)
    channels, height, width = shapes[given][1:]
    dims = (channels, height, width)
    layers.bind(given, layers.add("Input", [], {0: width, 1: height, 2: channels}, dims)[0])
    for node in nodes:
        known[node.op_type](Node(node, layers))
    return layers.write(given, answer, half)
