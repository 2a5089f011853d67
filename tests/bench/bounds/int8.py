"""How much faster a graph can get by integers in more of its convolutions: a measurement of speed alone.

    python -m tests.bench.bounds.int8 NAME.tile.onnx [NAME.int8.tile.onnx] [--rounds 25]

Convolutions are given QuantizeLinear and DequantizeLinear with one scale for all maps, so that the answers are wrong
and the kernels are right: those with kernels of 3x3 and more, then 1x1 ones too, then all, first, last and depthwise
ones included. OpenVINO, one thread, processor time, in turns. What is left then bounds what a quantiser can gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from clusir.export.graph.edit import sort_nodes
from tests.bench.timing import alternate

if TYPE_CHECKING:
    from openvino import InferRequest

Choice = Callable[[tuple[int, ...], int], bool]
_WIDE = 16  # channels

# Of a convolution's weight shape and its groups.
CHOICES: dict[str, Choice] = {
    "3x3 and larger": lambda shape, groups: groups == 1 and min(shape) > 1 and min(shape[:2]) >= _WIDE,
    "and 1x1": lambda shape, groups: groups == 1 and min(shape[:2]) >= _WIDE,
    "all": lambda shape, groups: True,
}


def quantised(path: Path, choice: Choice) -> tuple[bytes, int]:
    """The graph with integers around the chosen convolutions, and how many these are."""
    model = onnx.load(path)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes: list[NodeProto] = []
    constants = [
        numpy_helper.from_array(np.float32(1 / 64), "map/scale"),
        numpy_helper.from_array(np.uint8(128), "map/zero"),
    ]
    made, count = set[str](), 0
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if weight is not None and choice(weight.shape, groups):
            name, count = f"integer{count}", count + 1
            scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-8).astype(np.float32) / 127
            rounded = np.round(weight / scale[:, None, None, None]).astype(np.int8)
            parts = {"": rounded, "/scale": scale, "/zero": np.zeros(len(scale), np.int8)}
            constants += [numpy_helper.from_array(array, name + end) for end, array in parts.items()]
            nodes.append(helper.make_node("DequantizeLinear", [name + end for end in parts], [f"{name}/real"], axis=0))
            given = node.input[0]
            if given not in made:
                made.add(given)
                scales = ["map/scale", "map/zero"]
                nodes.append(helper.make_node("QuantizeLinear", [given, *scales], [f"{given}/integer"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{given}/integer", *scales], [f"{given}/real"]))
            node.input[0], node.input[1] = f"{given}/real", f"{name}/real"
        nodes.append(node)
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in sort_nodes(nodes)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    model.graph.initializer.extend(constants)
    return model.SerializeToString(), count


def opened(graph: bytes, feeds: Mapping[str, np.ndarray], **settings: object) -> InferRequest:
    """A request of a graph in float32 and its integers on one thread; ``settings`` are OpenVINO's."""
    import openvino

    core = openvino.Core()
    model = core.read_model(graph, b"")
    for parameter in model.get_parameters():  # Model.reshape would fold the integers into floats
        shape = feeds[parameter.get_friendly_name()].shape
        parameter.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(model, "CPU", config | settings).create_infer_request()


def call(request: InferRequest, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """A closure that runs a request."""
    return lambda: request.infer(dict(feeds), share_inputs=True)


def feeds_of(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {p.name: [d.dim_value or 1 for d in p.type.tensor_type.shape.dim] for p in onnx.load(path).graph.input}
    return {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("quantised", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    feeds = feeds_of(options.graph)
    graphs = {"float32": onnx.load(options.graph).SerializeToString()}
    if options.quantised:
        graphs["the quantiser's"] = onnx.load(options.quantised).SerializeToString()
    for what, choice in CHOICES.items():
        graph, count = quantised(options.graph, choice)
        graphs[f"{what} ({count})"] = graph
    times = alternate({n: call(opened(g, feeds), feeds) for n, g in graphs.items()}, options.rounds, cpu_clock=True)
    print("| convolutions in integers | ms, fastest | faster than float32 | by the medians |\n|---|---:|---:|---:|")
    float32 = times["float32"]
    for name, time in times.items():
        ratios = float32.minimum_ms / time.minimum_ms, float32.median_ms / time.median_ms
        print(f"| {name} | {time.minimum_ms:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
