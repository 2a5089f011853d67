"""BranchExperts: equal to dense for every route and batch, weights inside the branches, refusals with a reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from clusir.errors import ExportError
from clusir.export.experts.conditional import BranchExperts
from clusir.export.experts.dense import SeparateExperts
from clusir.export.graph.index import GraphIndex, sort_nodes
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import write_onnx
from clusir.network.experts import SparseExperts
from clusir.runtimes.runners.quiet import import_openvino

ov = import_openvino()  # imported plainly, it would report that

WIDTH = 8
ROUTES = (
    [torch.eye(4)[[e]] * 0.7 for e in range(4)]
    + [torch.eye(4)[list(rows)] * 0.6 for rows in ((0, 1, 2, 3), (3, 3, 3, 3), (2, 0, 2, 1))]
    + [torch.tensor([[0.0, -0.4, 0.0, 0.2]]), torch.zeros(1, 4), torch.zeros(4, 4)]
)


class Chain(nn.Module):
    """acc + g_e * expert_e, one after the other, on top of a residual; the usual hand-written dense form."""

    def __init__(self, base: SparseExperts) -> None:
        super().__init__()
        self.experts = base.experts

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        out = u
        for index, expert in enumerate(self.experts):
            out = out + gate[:, index].view(-1, 1, 1, 1) * expert(u, u.sigmoid())
        return torch.relu(out)


class Stacked(nn.Module):
    """The toolkit's own dense form, without anything to add the first expert to."""

    def __init__(self, base: SparseExperts) -> None:
        super().__init__()
        self.dense = SeparateExperts(base)

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        return torch.relu(self.dense(u, u.sigmoid(), gate))


class Narrowing(nn.Module):
    """Experts whose result has another width than their input: the shape of a skipped one must be put together."""

    def __init__(self, base: SparseExperts) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(WIDTH, 5, 3, padding=1) for _ in range(4))

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        terms = [gate[:, e : e + 1, None, None] * expert(u) for e, expert in enumerate(self.experts)]
        return torch.relu(terms[0] + terms[1] + (terms[2] + terms[3]))


def base() -> SparseExperts:
    torch.manual_seed(2)
    return SparseExperts(WIDTH, (2, 3, 4, 8), (3, 5, 7, 9)).eval()


@functools.cache
def _exported(form: Callable[[SparseExperts], nn.Module], dynamic: bool) -> bytes:
    example = (torch.rand(2, WIDTH, 12, 20), torch.eye(4)[:2])
    model = write_onnx(form(base()).eval(), example, ("u", "gate"), ("y",), dynamic_size=dynamic)
    return bytes(SimplifyGraph().apply(model).model.SerializeToString())


def dense_graph(form: Callable[[SparseExperts], nn.Module], dynamic: bool = True) -> onnx.ModelProto:
    """The dense graph of ``form(base())``; exported once a form, because exporting is what takes the time."""
    return onnx.load_from_string(_exported(form, dynamic))


def branched(model: onnx.ModelProto) -> onnx.ModelProto:
    step = BranchExperts()
    result = step.apply(model)
    assert result.modified, result.notes
    step.ensures(result.model)
    return result.model


def ifs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type == "If"]


def branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(a.g for a in node.attribute if a.name == name)


@pytest.mark.parametrize(
    ("form", "dynamic"),
    [(Chain, True), (Stacked, True), (Narrowing, True), (Stacked, False)],
    ids=["chain", "stacked", "narrowing", "stacked static"],
)
def test_branches_equal_dense_for_every_route_and_batch(
    form: Callable[[SparseExperts], nn.Module], dynamic: bool, tmp_path: Path
) -> None:
    module = form(base()).eval()
    model = branched(dense_graph(form, dynamic))
    assert len(ifs(model)) == 4
    session = ort.InferenceSession(model.SerializeToString())
    onnx.save_model(model, str(tmp_path / "branched.onnx"))
    compiled = ov.Core().compile_model(tmp_path / "branched.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for number, gate in enumerate(ROUTES):
        size = (12, 20) if not dynamic else ((9, 7), (12, 20))[number % 2]
        u = torch.randn(len(gate), WIDTH, *size, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            want = module(u, gate).numpy()
        feeds = {"u": u.numpy(), "gate": gate.numpy()}
        np.testing.assert_allclose(session.run(None, feeds)[0], want, atol=2e-6)
        np.testing.assert_allclose(compiled(feeds)[0], want, atol=2e-6)


def test_weights_and_products_live_inside_the_branches() -> None:
    model = branched(dense_graph(Chain))
    outside = [t for t in model.graph.initializer if int(np.prod(t.dims)) > 8]
    assert not outside, "an expert's weight stayed in the main graph, where blocked convolutions do not see it"
    outer = {n.op_type for n in model.graph.node}
    assert not outer & {"Conv", "Mul", "Add"}
    for node in ifs(model):
        chosen = branch(node, "then_branch")
        inner = [n.op_type for n in chosen.node]
        assert inner.count("Conv") == 4
        assert inner[-1] == "Add"
        assert sum(len(t.dims) == 4 for t in chosen.initializer) == 4
        assert [n.op_type for n in branch(node, "else_branch").node] == ["Identity"]


def test_an_expert_that_nobody_chose_does_not_run() -> None:
    """Weights of NaN in one expert poison the dense graph always, and the branched one only where it is chosen."""
    dense = dense_graph(Chain)
    for tensor in dense.graph.initializer:
        if "experts.2.leave" in tensor.name:
            values = onnx.numpy_helper.to_array(tensor) * np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    u = np.ones((1, WIDTH, 6, 6), np.float32)

    def answer(model: onnx.ModelProto, expert: int) -> np.ndarray:
        gate = np.eye(4, dtype=np.float32)[[expert]]
        return ort.InferenceSession(model.SerializeToString()).run(None, {"u": u, "gate": gate})[0]

    assert np.isnan(answer(dense, 1)).any()
    assert np.isfinite(answer(branched(dense), 1)).all()
    assert np.isnan(answer(branched(dense), 2)).any()


class SharedStem(nn.Module):
    """What all experts read is computed once, outside; two blocks follow each other under one gate."""

    def __init__(self, experts: SparseExperts) -> None:
        super().__init__()
        self.stem = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.first, self.second = Chain(experts), Stacked(experts)

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        return self.second(self.first(self.stem(u).tanh(), gate), gate)


def test_two_blocks_share_their_stem_and_their_condition() -> None:
    torch.manual_seed(2)
    model = branched(dense_graph(SharedStem))
    outer = [n.op_type for n in model.graph.node]
    assert outer.count("If") == 8
    assert (outer.count("Conv"), outer.count("Tanh"), outer.count("ReduceMin")) == (1, 1, 1)
    dense = ort.InferenceSession(dense_graph(SharedStem).SerializeToString())
    session = ort.InferenceSession(model.SerializeToString())
    for gate in ROUTES[1:5:2]:
        feeds = {"u": torch.rand(len(gate), WIDTH, 8, 8).numpy(), "gate": gate.numpy()}
        np.testing.assert_allclose(session.run(None, feeds)[0], dense.run(None, feeds)[0], atol=5e-6)


def weighted_convolution(columns: tuple[int, ...]) -> onnx.ModelProto:
    """A sum of Conv(u) * gate[:, c] over the columns, written by hand."""
    tensor, build = helper.make_tensor_value_info, helper.make_node
    weight = onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    shape = onnx.numpy_helper.from_array(np.array([-1, 1, 1, 1]), "shape")
    nodes, terms = [], []
    for number, column in enumerate(columns):
        at = f"at_{number}"
        nodes += [
            build("Constant", [], [at], value_int=column),
            build("Gather", ["gate", at], [f"c_{number}"], axis=1),
            build("Reshape", [f"c_{number}", "shape"], [f"g_{number}"]),
            build("Conv", ["u", "w"], [f"e_{number}"]),
            build("Mul", [f"e_{number}", f"g_{number}"], [f"m_{number}"]),
        ]
        terms.append(f"m_{number}")
    nodes.append(build("Sum", terms, ["y"]))
    sizes = ["b", 2, 4, 4]
    graph = helper.make_graph(
        nodes, "g", [tensor("u", 1, sizes), tensor("gate", 1, ["b", 3])], [tensor("y", 1, sizes)], [weight, shape]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("columns", [(0,), (1, 1)], ids=["one product", "one column twice"])
def test_a_single_column_is_no_choice(columns: tuple[int, ...]) -> None:
    graph = weighted_convolution(columns)
    result = BranchExperts().apply(graph)
    assert not result.modified
    assert result.model is graph
    assert "no products of experts" in result.notes[0]
    assert BranchExperts().apply(weighted_convolution((0, 2))).modified


def test_a_gate_that_is_not_a_number_is_not_skipped() -> None:
    dense = weighted_convolution((0, 2))
    model = branched(dense)
    u = np.ones((2, 2, 4, 4), np.float32)
    for gate in ([[np.nan, 0, 1]] * 2, [[0, 0, 1], [np.nan, 0, 1]], [[0, 0, 0], [0, 0, np.nan]], [[0, 0, np.inf]] * 2):
        feeds = {"u": u, "gate": np.array(gate, np.float32)}
        want, got = (ort.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (dense, model))
        assert np.array_equal(want, got, equal_nan=True)


def test_a_graph_whose_names_this_pass_would_make_is_left_alone() -> None:
    graph = weighted_convolution((0, 2))
    graph.graph.node.append(helper.make_node("Abs", ["gate"], ["gate__active"]))
    graph.graph.output.append(helper.make_tensor_value_info("gate__active", 1, ["b", 3]))
    result = BranchExperts().apply(graph)
    assert not result.modified
    assert "gate__active" in result.notes[0]


def test_ensures_refuses_a_broken_graph() -> None:
    model = branched(dense_graph(Chain))
    del model.graph.node[0]
    with pytest.raises(ExportError, match="not valid"):
        BranchExperts().ensures(model)


def test_sort_nodes_follows_captures_and_refuses_cycles() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    make = helper.make_node("Abs", ["x"], ["a"])
    assert [n.op_type for n in sort_nodes([choice, make])] == ["Abs", "If"]
    loop = [helper.make_node("Abs", ["p"], ["q"]), helper.make_node("Abs", ["q"], ["p"])]
    with pytest.raises(ExportError, match="cycle"):
        sort_nodes(loop)


def test_cone_stops_where_somebody_else_looks() -> None:
    x = helper.make_tensor_value_info("x", 1, [1])
    y, z = (helper.make_tensor_value_info(n, 1, [1]) for n in "yz")
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "x"], ["y"]),
        helper.make_node("Neg", ["a"], ["z"]),
    ]
    index = GraphIndex(helper.make_graph(nodes, "g", [x], [y, z]))
    assert [n.op_type for n in index.cone("b", index.producer["y"])] == ["Relu"]
    index = GraphIndex(helper.make_graph(nodes[:3], "g", [x], [y]))
    assert [n.op_type for n in index.cone("b", index.producer["y"])] == ["Abs", "Relu"]
