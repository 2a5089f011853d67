"""Leaving out one pass at a time: what is written, and the table."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.export.passes.simplify import operators
from tests.bench.pages.ablation import Ablation, _without_each, ablation_table
from tests.bench.pages.kernels import by_kind, ort_kernels


def upsampling() -> onnx.ModelProto:
    """A 1x1 convolution and DepthToSpace, which FuseUpsample alone changes."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 4, 1, 1), dtype=np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["wide"]),
        helper.make_node("DepthToSpace", ["wide"], ["y"], blocksize=2, mode="CRD"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 6, 6])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 12, 12])
    graph = helper.make_graph(nodes, "g", [image], [result], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_only_passes_that_change_the_graph_are_left_out() -> None:
    written = _without_each(upsampling())
    assert list(written) == ["all passes", "all passes, opened again", "FuseUpsample"]
    kinds = {name: set(operators(onnx.load_from_string(graph).graph)) for name, graph in written.items()}
    assert kinds["all passes"] == {"ConvTranspose"}
    assert kinds["FuseUpsample"] == {"Conv", "DepthToSpace"}


def test_kernels_are_timed_by_kind() -> None:
    feeds = {"image": np.ones((1, 4, 6, 6), np.float32)}
    found = by_kind(ort_kernels(upsampling().SerializeToString(), feeds, threads=1, runs=2))
    assert {"Conv", "DepthToSpace"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_table_has_a_line_for_each_pass_and_leaves_gaps() -> None:
    table = ablation_table(
        [Ablation("net", {"ONNX Runtime": 10.0}, {"ONNX Runtime": 1.01}, {"ONNX Runtime": {"FuseHaar": 1.2}})]
    )
    lines = table.splitlines()
    assert "| nothing, opened twice | 1.010 |" in lines
    assert "| `FuseHaar` | 1.200 |" in lines
    assert "| `OrderGelu` |  |" in lines
