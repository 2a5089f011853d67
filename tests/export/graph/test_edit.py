"""The tools that every graph pass is made of: order, shapes without weights, many redirections at once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import inferred, sort_nodes


def chain() -> onnx.ModelProto:
    """x [N,3,8,8] -> Conv with 4 of 9x9 kernels (more numbers than a shape has) -> Relu -> y, and -> Neg -> z."""
    weight = np.ones((20, 3, 9, 9), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[4, 4, 4, 4]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
        helper.make_node("Neg", ["y"], ["z"], name="neg"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 20, 8, 8]) for name in ("y", "z")],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def shapes(graph: onnx.GraphProto) -> dict[str, list[int | str]]:
    values = [*graph.value_info, *graph.output]
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


def test_nodes_are_sorted_by_depth_and_otherwise_keep_their_order() -> None:
    def node(reads: list[str], makes: str) -> onnx.NodeProto:
        return helper.make_node("Sum", reads, [makes], name=makes)

    mixed = [node(["a", "b"], "c"), node(["x"], "b"), node(["x"], "a"), node(["c", "a"], "d"), node(["a"], "e")]
    assert [n.name for n in sort_nodes(mixed)] == ["b", "a", "c", "e", "d"]
    with pytest.raises(ExportError, match="cycle through p"):
        sort_nodes([*mixed, node(["q"], "p"), node(["p"], "q")])


def test_shapes_are_inferred_without_the_weights() -> None:
    model = chain()
    light = inferred(model)
    assert shapes(light) == {"c": ["batch", 20, 8, 8], "y": ["batch", 20, 8, 8], "z": ["batch", 20, 8, 8]}
    assert not light.initializer
    assert light.ByteSize() < 1000 < model.ByteSize()
    assert shapes(inferred(model, batch=2))["c"] == [2, 20, 8, 8]
    assert [i.name for i in model.graph.input] == ["x"]  # the model itself is left alone


def test_redirections_at_once_are_those_one_after_the_other() -> None:
    """Two values, one of them an output of the graph that the other's new node reads."""

    def changed(at_once: bool) -> onnx.ModelProto:
        edit = GraphEdit(chain())
        first = edit.node("Abs", ["c"], "c/abs")
        second = edit.node("Exp", ["c"], "y/exp")
        if at_once:
            edit.redirect_all({"c": first, "y": second})
        else:
            edit.redirect("c", first)
            edit.redirect("y", second)
        edit.drop_unused()
        onnx.checker.check_model(edit.model, full_check=True)
        return edit.model

    together, apart = changed(at_once=True), changed(at_once=False)
    assert [o.name for o in together.graph.output] == ["y", "z"]
    made = {n.output[0]: (n.op_type, list(n.input)) for n in together.graph.node}
    assert made["z"] == ("Neg", ["y"])
    assert made["y"][0] == "Exp"
    assert "Relu" not in {n.op_type for n in together.graph.node}
    assert {n.op_type for n in apart.graph.node} == {n.op_type for n in together.graph.node}
