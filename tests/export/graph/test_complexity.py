"""The shipped network's budget: parameters, and multiply-accumulates per pixel with the FFT among them."""

from __future__ import annotations

from math import prod

import onnx
import pytest
from onnx import TensorProto, helper

from clusir.errors import ExportError
from clusir.export.graph.complexity import count_macs
from clusir.network import checkpoint


def model(op: str, first: list[int | str], second: list[int], **attributes: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, first)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, second, [0.0] * prod(second))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_known_operators_are_counted_right() -> None:
    assert count_macs(model("Conv", ["b", 4, 8, 8], [6, 4, 3, 3], pads=[1, 1, 1, 1])) == {"Conv": 64 * 6 * 4 * 9}
    assert count_macs(model("Conv", ["b", 4, 8, 8], [4, 1, 3, 3], group=4, pads=[1, 1, 1, 1])) == {"Conv": 64 * 4 * 9}
    assert count_macs(model("ConvTranspose", ["b", 4, 8, 8], [4, 2, 2, 2], strides=[2, 2])) == {
        "ConvTranspose": 64 * 4 * 2 * 4
    }
    assert count_macs(model("MatMul", ["b", 5, 7], [7, 3]), batch=2) == {"MatMul": 2 * 5 * 7 * 3}


def test_an_unknown_shape_is_an_error() -> None:
    with pytest.raises(ExportError, match="not known"):
        count_macs(model("Conv", ["b", 4, "height", 8], [6, 4, 3, 3]))


def test_the_shipped_network_holds_its_budget() -> None:
    path = checkpoint.shipped()
    assert sum(p.numel() for p in checkpoint.load(path).parameters()) <= 1_500_000
    shipped = onnx.load(path.with_suffix(".onnx"))
    assert 20_000 < sum(count_macs(shipped).values()) / 256**2 <= 60_000


def test_a_branch_counts_as_its_dearer_way_and_a_loop_is_an_error() -> None:
    dense = model("Conv", ["b", 4, 8, 8], [6, 4, 3, 3], pads=[1, 1, 1, 1])
    ways = []
    for name, ops in (("then", [dense.graph.node[0]]), ("else", [])):
        node = helper.make_node("Conv", ["x", "w"], [f"{name}_y"], pads=[1, 1, 1, 1])
        idle = helper.make_node("Shape", ["x"], [f"{name}_y"])
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT if ops else TensorProto.INT64, None)
        ways.append(helper.make_graph([node if ops else idle], name, [], [out]))
    branched = onnx.ModelProto()
    branched.CopyFrom(dense)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    branched.graph.input.append(condition)
    del branched.graph.node[:]
    branched.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=ways[0], else_branch=ways[1]))
    branched.graph.input[1].type.tensor_type.shape.dim.add().dim_value = 1
    assert count_macs(branched) == count_macs(dense) == {"Conv": 64 * 6 * 4 * 9}
    branched.graph.node[0].op_type = "Loop"
    with pytest.raises(ExportError, match="how often Loop"):
        count_macs(branched)
