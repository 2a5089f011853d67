"""The tools that every graph pass is made of: order, shapes without weights, many redirections at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph import probe
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import drop_unused, inferred, sort_nodes


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


def outputs_of(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def two_outputs(*nodes: onnx.NodeProto, weights: tuple[str, ...] = ()) -> onnx.ModelProto:
    """y = -x and z = |x|, with more nodes, and constants that are graph inputs too."""
    made = [helper.make_node("Neg", ["x"], ["y"], name="neg"), helper.make_node("Abs", ["x"], ["z"], name="abs")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", *weights, "y", "z")]
    constants = [numpy_helper.from_array(np.float32([1, 2]), name) for name in weights]
    graph = helper.make_graph([*made, *nodes], "two", ports[: 1 + len(weights)], ports[-2:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


X = np.float32([-3, 5])


@pytest.mark.parametrize("new", ["x", "z"], ids=["an input", "another output"])
def test_an_output_may_become_an_input_or_another_output(new: str) -> None:
    edit = GraphEdit(two_outputs())
    edit.redirect("y", new)
    edit.drop_unused()
    found = outputs_of(edit.model, X)
    assert np.array_equal(found["y"], X if new == "x" else np.abs(X))
    assert np.array_equal(found["z"], np.abs(X))


def test_two_outputs_may_become_one_new_value() -> None:
    edit = GraphEdit(two_outputs())
    doubled = edit.node("Add", ["x", "x"], "doubled")
    edit.redirect_all({"y": doubled, "z": doubled})
    edit.drop_unused()
    found = outputs_of(edit.model, X)
    assert np.array_equal(found["y"], 2 * X)
    assert np.array_equal(found["z"], 2 * X)


def test_a_new_name_is_nobodys() -> None:
    """Names of inputs, of values inside a branch, and the name that an output's former value takes."""
    model = two_outputs(helper.make_node("Sigmoid", ["x"], ["y/before"], name="s"))
    model.graph.node[1].op_type, model.graph.node[1].input[0] = "Neg", "y/before"
    edit = GraphEdit(model)
    edit.redirect("y", edit.node("Abs", ["x"], "new"))
    edit.drop_unused()
    found = outputs_of(edit.model, X)
    assert np.array_equal(found["y"], np.abs(X))
    assert np.allclose(found["z"], -1 / (1 + np.exp(-X)))
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, [2])],
    )
    choice = helper.make_node("If", ["c"], ["chosen"], then_branch=inner, else_branch=inner)
    model = two_outputs(choice, weights=("c", "idle"))  # of idle: an input and a constant that no node reads
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "lone"))
    edit = GraphEdit(model)
    for name in ("x", "c", "idle", "lone", "y", "inside", "neg"):
        assert edit.fresh(name) == f"{name}_1"


def test_a_default_of_an_input_is_no_constant_and_stays() -> None:
    edit = GraphEdit(two_outputs(weights=("w",)))
    assert "w" not in edit.linear().constants
    edit.redirect("y", edit.node("Exp", ["x"], "new"))
    edit.drop_unused()
    assert [t.name for t in edit.model.graph.initializer] == ["w"]
    outputs_of(edit.model, X)


def test_sizes_that_follow_the_batch_are_not_fixed() -> None:
    """The batch turned into the height: what holds for two pictures does not for three."""
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 2, 0, 3]), helper.make_node("Relu", ["x"], ["z"])]
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
    )
    linear = GraphEdit(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)).linear()
    assert linear.shape("y") is None
    assert linear.shape("z") == (2, 3, 4, 6)
    assert {"x", "z"} <= linear.open


def test_after_an_edit_the_graph_is_looked_at_again_for_new_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], probe._look

    def counted(*args: Any, **more: Any) -> Any:
        looks.append(args)
        return look(*args, **more)

    monkeypatch.setattr(probe, "_look", counted)
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in ("xy", "yz", "zo")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 6]) for name in "xo"]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    edit = GraphEdit(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    assert edit.linear().shape("z") == (2, 3, 4, 6)
    flat = edit.reshape("y", [0, -1], "flat")
    edit.redirect("z", edit.reshape(flat, [0, 3, 4, 6], "back"))
    assert len(looks) == 1
    linear = edit.linear()
    assert (linear.shape("y"), linear.shape("nobody"), "y" in linear.open) == ((2, 3, 4, 6), None, True)
    assert len(looks) == 1
    assert (linear.shape(flat), flat in linear.open, linear.is_float(flat)) == ((2, 72), True, True)
    assert linear.shape("back") == (2, 3, 4, 6)
    assert len(looks) == 2
    edit.drop_unused()
    assert {"x", "y", "o", flat} <= set(edit.linear().shapes) - {"z"} == set(edit.linear().shapes)


def test_what_nothing_needs_leaves_the_graph_with_its_weights_and_shapes() -> None:
    model = onnx.shape_inference.infer_shapes(chain())
    graph = model.graph
    for name in ("unread", "default"):
        graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), name))
    graph.input.append(helper.make_tensor_value_info("default", TensorProto.FLOAT, [3]))
    graph.node.append(helper.make_node("Abs", ["c"], ["alone"], name="alone"))
    graph.value_info.append(helper.make_tensor_value_info("alone", TensorProto.FLOAT, None))
    order = [graph.node[i] for i in (3, 2, 1, 0)]  # from the end to the start
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)
    drop_unused(graph)
    assert [node.name for node in graph.node] == ["conv", "relu", "neg"]
    assert {tensor.name for tensor in graph.initializer} == {"w", "default"}
    assert "alone" not in shapes(graph)
    assert "c" in shapes(graph)
