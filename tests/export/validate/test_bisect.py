import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clusir.errors import UsageError
from clusir.export.trace.writer import write_onnx
from clusir.export.validate.bisect import bisect, bisect_values, difference
from clusir.export.validate.bisect_torch import bisect_module


@pytest.fixture
def feeds(routed: Any) -> dict[str, np.ndarray]:
    return {"image": routed.source.sample(0).image}


def altered(path: Path, weight: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), weight))
    return model


def test_equal_models_have_no_divergence(routed: Any, feeds: dict[str, np.ndarray]) -> None:
    found = bisect(routed.whole, routed.whole, feeds, 1e-6)
    assert not found.found
    assert (found.relative, found.max_abs) == (0.0, 0.0)
    assert found.aligned > 40
    assert "No tensor is over the tolerance" in found.to_markdown()


def test_the_first_altered_layer_is_found_and_reproduced(
    routed: Any, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    weight = "encoder.0.experts.experts.1.leave.weight"
    other = altered(routed.whole, weight, lambda w: w * np.float32(1.5))
    found = bisect(routed.whole, other, feeds, 1e-3, tmp_path / "out")
    node = next(n for n in other.graph.node if weight in n.input)
    assert (found.tensor, found.op_type) == (node.output[0], "Conv")
    assert found.boundary == (node.input[0],)
    assert found.relative == pytest.approx(0.5, rel=1e-3)
    assert found.local_relative == pytest.approx(0.5, rel=1e-3)
    # The reproducer stands alone, in plain ONNX Runtime.
    inputs = dict(np.load(tmp_path / "out" / "inputs.npz"))
    expected = np.load(tmp_path / "out" / "expected.npz")[found.tensor]
    b = onnxruntime.InferenceSession(tmp_path / "out" / "b.onnx").run(None, inputs)[0]
    a = onnxruntime.InferenceSession(tmp_path / "out" / "a.onnx").run(None, inputs)[0]
    assert len(onnx.load(tmp_path / "out" / "b.onnx").graph.node) == 1
    np.testing.assert_allclose(a, expected, atol=1e-5)
    np.testing.assert_allclose(b, 1.5 * expected, atol=1e-4)
    assert json.loads((tmp_path / "out" / "divergence.json").read_text())["tensor"] == found.tensor
    assert found.tensor in found.to_markdown()


def test_the_first_of_several_in_the_order_of_computation(routed: Any, feeds: dict[str, np.ndarray]) -> None:
    late = altered(routed.whole, "head.weight", lambda w: w * 2)
    tensor = next(t for t in late.graph.initializer if t.name == "encoder.1.block.project.weight")
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    found = bisect(routed.whole, late, feeds, 1e-3)
    assert found.tensor == next(n for n in late.graph.node if tensor.name in n.input).output[0]


def test_values_that_are_not_finite_or_have_another_shape_diverge() -> None:
    one = np.ones(3, np.float32)
    assert difference(one, np.array([1, np.nan, 1], np.float32)).relative == np.inf
    assert difference(one, np.ones(4, np.float32)).relative == np.inf
    assert difference(np.zeros(3, np.float32), one).relative == np.inf
    assert difference(np.zeros(3, np.float32), np.zeros(3, np.float32)).relative == 0.0
    assert difference(2 * one, 3 * one).relative == pytest.approx(0.5)


def test_requests_that_make_no_sense_are_refused(routed: Any, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="no value was given for the graph input image"):
        bisect(routed.whole, routed.whole, {}, 1e-3)
    with pytest.raises(UsageError, match="tolerance 0 is not a positive number"):
        bisect(routed.whole, routed.whole, feeds, 0)
    with pytest.raises(UsageError, match="share no tensor name"):
        bisect_values({"foreign": np.zeros(1)}, routed.whole, feeds, 1e-3)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = image + self.body(torch.relu(self.first(image)))
        return out


def test_a_network_against_its_file_blames_the_layer_that_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small().eval()
    model = write_onnx(network, (torch.rand(2, 3, 16, 16),), ["image"], ["restored"], dynamic_size=False)
    feeds = {"image": torch.rand(1, 3, 16, 16).numpy()}
    same = bisect_module(network, model, feeds, 1e-4)
    assert (same.found, same.aligned) == (False, 3)
    with torch.no_grad():
        network.body[2].weight[0] += 0.3
    found = bisect_module(network, model, feeds, 1e-4, tmp_path)
    node = next(n for n in model.graph.node if n.input[1:2] == ["body.2.weight"])
    assert found.tensor == node.output[0]
    assert (tmp_path / "b.onnx").is_file()
    with pytest.raises(UsageError, match="share no layer by name"):
        bisect_module(nn.Sequential(nn.ReLU()), model, feeds, 1e-4)


class Twins(nn.Module):
    """Two layers whose names end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 3, padding=1)
        self.body = nn.Module()
        self.body.head = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body.head(image)))
        return out


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.model(image)
        return out


@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_whose_names_end_alike_are_not_mixed_up(wrapped: bool) -> None:
    torch.manual_seed(0)
    network = Twins().eval()
    source = Wrapped(network) if wrapped else network
    model = write_onnx(source, (torch.rand(2, 3, 16, 16),), ["image"], ["restored"], dynamic_size=False)
    found = bisect_module(network, model, {"image": torch.rand(1, 3, 16, 16).numpy()}, 1e-4)
    assert (found.found, found.aligned) == (False, 2)


def masked(value: float) -> onnx.ModelProto:
    """A graph with infinities, NaN, an empty tensor and random numbers inside."""
    nodes = [
        helper.make_node("Mul", ["image", "mask"], ["masked"]),
        helper.make_node("Slice", ["image", "zero", "zero"], ["empty"]),
        helper.make_node("Sqrt", ["below"], ["nan"]),
        helper.make_node("RandomUniformLike", ["image"], ["noise"]),
        helper.make_node("Add", ["image", "value"], ["restored"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("image", "restored")]
    constants = {"mask": -np.inf, "below": -1.0, "value": value}
    tensors = [numpy_helper.from_array(np.array([v], np.float32), n) for n, v in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_file_against_itself_differs_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even run: a runtime may answer the same question in two ways."""
    feeds = {"image": np.ones((1, 4), np.float32)}
    monkeypatch.setattr(sys.modules[bisect.__module__], "Probe", lambda *_, **__: pytest.fail("it was run"))
    same = bisect(masked(0.0), masked(0.0), feeds, 1e-6)
    assert (same.found, same.relative) == (False, 0.0)
    with pytest.raises(UsageError, match="is not a positive number"):
        bisect(masked(0.0), masked(0.0), feeds, float("nan"))


def test_infinities_that_both_have_are_no_difference(tmp_path: Path) -> None:
    a, b = masked(0.0), masked(0.5)
    for model in (a, b):
        del model.graph.node[3]  # random numbers differ from run to run
    found = bisect(a, b, {"image": np.ones((1, 4), np.float32)}, 1e-6)
    assert found.tensor == "restored"


def test_an_input_that_only_the_other_file_has_is_asked_for() -> None:
    other = masked(0.0)
    other.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(UsageError, match="no value was given for the graph input more"):
        bisect(masked(0.0), other, {"image": np.ones((1, 4), np.float32)}, 1e-6)
