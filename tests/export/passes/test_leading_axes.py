"""LeadingAxes: the numbers stay, and OpenVINO takes a graph with an open batch that it refuses otherwise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clusir.export.graph.session import Probe
from clusir.export.passes.plain.leading_axes import LeadingAxes
from clusir.runtimes.runners.quiet import import_openvino

openvino = import_openvino()  # imported plainly, it would report that

# first shape, order, second shape
CHANGED = {
    "windows": ([3, -1, 2, 64], [0, 1, 3, 2], [3, -1, 8, 8, 2]),
    "as long as before": ([3, -1, 2, 64], [0, 1, 3, 2], [3, 0, 8, 8, 2]),
    "regrouped": ([3, -1, 2, 64], [0, 1, 3, 2], [3, -1, 16, 8]),
    "three in front": ([3, -1, 2, 8, 8], [0, 1, 2, 4, 3], [3, -1, 2, 0, 0]),
}
LEFT = {
    "open in front": ([-1, 2, 3, 64], [0, 2, 1, 3], [-1, 6, 8, 8]),
    "nothing left alone": ([3, -1, 2, 64], [1, 0, 2, 3], [-1, 6, 8, 8]),
    "open behind": ([3, 2, 2, -1], [0, 1, 3, 2], [3, -1, 2, 2]),
    "known": ([3, 2, 2, 64], [0, 1, 3, 2], [3, 2, 8, 8, 2]),
}


def graph(first: list[int], order: list[int], second: list[int], read_twice: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["image", "first"], ["parts"]),
        helper.make_node("Transpose", ["parts"], ["turned"], perm=order),
        helper.make_node("Reshape", ["turned", "second"], ["made"]),
        helper.make_node("Relu", ["made"], ["restored"]),
    ]
    outputs = [helper.make_tensor_value_info("restored", TensorProto.FLOAT, None)]
    if read_twice:
        nodes.append(helper.make_node("Relu", ["turned"], ["more"]))
        outputs.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 6, 8, 8])
    constants = [numpy_helper.from_array(np.array(s, np.int64), n) for n, s in (("first", first), ("second", second))]
    made = helper.make_graph(nodes, "graph", [image], outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("name", CHANGED)
def test_openvino_takes_the_graph_and_the_numbers_stay(name: str) -> None:
    model = graph(*CHANGED[name])
    done = LeadingAxes().apply(model)
    assert done.modified
    image = np.random.default_rng(0).normal(size=(2, 6, 8, 8)).astype(np.float32)
    want = Probe(model).run({"image": image})["restored"]
    np.testing.assert_array_equal(Probe(done.model).run({"image": image})["restored"], want)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(done.model.SerializeToString(), b""), "CPU")
    np.testing.assert_array_equal(compiled(image)[0], want)


@pytest.mark.parametrize("name", LEFT)
def test_what_openvino_takes_is_left_alone(name: str) -> None:
    assert not LeadingAxes().apply(graph(*LEFT[name])).modified


def test_what_somebody_else_reads_is_left_alone() -> None:
    assert not LeadingAxes().apply(graph(*CHANGED["windows"], read_twice=True)).modified
