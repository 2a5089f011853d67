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
