"""Weights rounded for the least error of the layer's output."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clusir.export.graph.session import Probe
from clusir.export.quantize.integers import ToIntegers
from clusir.export.quantize.layers import Graph, load_graph
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.rounding import round_least_squares, supported
from clusir.export.quantize.statistics import Moments, record
from clusir.export.quantize.steps import QuantizeConfig, Quantizer
from tests.export.quantize.test_channels import SIZE, network


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Smooth pictures, whose neighbouring pixels are nearly equal, as those of photos are."""
    rng = np.random.default_rng(7)
    feeds = []
    for _ in range(6):
        picture = rng.random((1, 3, SIZE, SIZE)).cumsum(2).cumsum(3)
        feeds.append({"image": (picture / picture.max()).astype("f4")})
    return Calibration(feeds, [str(i) for i in range(6)], np.zeros((6, 0), np.float32))


def test_rounding_leaves_what_the_inputs_cannot_see() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4000, 4)) @ rng.standard_normal((4, 24)) + 0.05 * rng.standard_normal((4000, 24)) + 1
    moment = inputs.T @ inputs / len(inputs)
    rows, steps = rng.standard_normal((6, 24)), np.full(6, 0.05)
    limit = 100

    def error(integers: np.ndarray) -> float:
        return float((((integers * steps[:, None] - rows) @ inputs.T) ** 2).mean())

    mine = round_least_squares(rows, steps, moment, limit)
    nearest = np.round(rows / steps[:, None])
    assert error(mine) < 0.1 * error(nearest)
    assert np.abs(mine - nearest).max() <= 5, "the neighbourhood of the float weights is not left"


def test_independent_inputs_are_rounded_to_the_nearest_within_the_limit() -> None:
    rng = np.random.default_rng(1)
    rows, steps = rng.standard_normal((3, 10)), np.array([0.1, 0.2, 0.05])
    found = round_least_squares(rows, steps, np.diag(rng.random(10)), 12)
    assert np.array_equal(found, np.clip(np.round(rows / steps[:, None]), -12, 12))
    assert np.abs(found).max() == 12
    silent = round_least_squares(rows, steps, np.zeros((10, 10)), 100)
    assert np.array_equal(silent, np.round(rows / steps[:, None])), "an expert that never fires"


def convolution(op: str, weight: np.ndarray, **attributes: object) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Identity", ["image"], ["x"], name="stem"),
        helper.make_node(op, ["x", "w"], ["y"], name="conv", **attributes),
    ]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 12, 14]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "one", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Conv", (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ("Conv", (4, 3, 3, 2), {"pads": [2, 0, 1, 1], "strides": [2, 1], "dilations": [2, 3]}),
        ("Conv", (4, 3, 2, 2), {"strides": [2, 2]}),
        ("ConvTranspose", (3, 4, 2, 2), {"strides": [2, 2]}),
    ],
)
def test_moments_predict_the_power_of_the_output(
    op: str, shape: tuple[int, ...], attributes: dict[str, object]
) -> None:
    """w' E[x x'] w is the mean square of what ONNX Runtime computes with w, whatever the padding and the order."""
    rng = np.random.default_rng(2)
    weight, image = rng.standard_normal(shape).astype("f4"), rng.standard_normal((2, 3, 12, 14)).astype("f4")
    graph = load_graph(convolution(op, weight, **attributes))
    feeds = Calibration([{"image": image}], ["a"], np.zeros((1, 0), np.float32))
    (moment,) = moments(graph, feeds).values()
    rows = weight.reshape(3, -1).T if op == "ConvTranspose" else weight.reshape(4, -1)
    predicted = np.einsum("oi,ij,oj->o", rows, moment, rows)
    output = Probe(graph.model).run({"image": image})["y"].astype(np.float64)
    if op == "ConvTranspose":
        output = output.reshape(2, 4, 12, 2, 14, 2).transpose(1, 3, 5, 0, 2, 4).reshape(16, -1)
    else:
        output = output.transpose(1, 0, 2, 3).reshape(4, -1)
    np.testing.assert_allclose(predicted, (output**2).mean(1), rtol=1e-4)


def moments(graph: Graph, calibration: Calibration) -> Moments:
    nodes = {node.input[1]: node for node in graph.convolutions() if supported(node, graph)}
    return record(graph, [], nodes, calibration, {}).moments


@pytest.mark.parametrize("attributes", [{"strides": [1, 1]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}])
def test_overlapping_windows_and_groups_are_left_out(attributes: dict[str, object]) -> None:
    weight = np.ones((3, 4, 2, 2), np.float32)
    feeds = Calibration([{"image": np.ones((2, 3, 12, 14), np.float32)}], ["a"], np.zeros((1, 0), np.float32))
    transposed = load_graph(convolution("ConvTranspose", weight, **attributes))
    assert moments(transposed, feeds) == {}
    grouped = load_graph(convolution("Conv", np.ones((3, 1, 2, 2), np.float32), group=3))
    assert moments(grouped, feeds) == {}


def test_the_quantised_network_is_closer_to_float(calibration: Calibration) -> None:
    source = network()
    expected = [Probe(source).run(feeds)["head"] for feeds in calibration.feeds]

    def build(least_squares: bool) -> onnx.ModelProto:
        config = QuantizeConfig().without("Compact", *(() if least_squares else ("RoundLeastSquares",)))
        return Quantizer(source, calibration, config).build(["up.weight"])

    def error(model: onnx.ModelProto) -> float:
        found = [Probe(model).run(feeds)["head"] for feeds in calibration.feeds]
        return float(np.mean([(x - y) ** 2 for x, y in zip(found, expected, strict=True)]))

    mine, nearest = build(True), build(False)
    again = Quantizer(source, calibration, QuantizeConfig().without("Compact"))
    again.build()
    assert again.build(["up.weight"]) == mine, "a second variant takes what the first one rounded"
    assert error(mine) < 0.9 * error(nearest)
    integers = [
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8}
        for model in (mine, nearest)
    ]
    for name, weight in integers[0].items():
        assert np.abs(weight).max() <= 64
        changed = np.mean(weight != integers[1][name])
        assert name.endswith("zero_point") or 0.02 < changed < 0.9


def upsampling() -> onnx.ModelProto:
    """stem, a transposed convolution without overlap, head."""
    rng = np.random.default_rng(3)
    shapes = {"stem": (8, 3, 3, 3), "up": (8, 6, 2, 2), "head": (3, 6, 3, 3)}
    loud = np.logspace(-1, 0, 6)[None, :, None, None]
    weights = {name: rng.standard_normal(shape) / 4 for name, shape in shapes.items()}
    weights["up"] *= loud
    weights["head"] /= loud
    constants = [numpy_helper.from_array(value.astype("f4"), f"{name}.weight") for name, value in weights.items()]
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["stem"], name="stem", pads=[1] * 4),
        helper.make_node("ConvTranspose", ["stem", "up.weight"], ["up"], name="up", strides=[2, 2]),
        helper.make_node("Conv", ["up", "head.weight"], ["y"], name="head", pads=[1] * 4),
    ]
    ports = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 2 * SIZE, 2 * SIZE]),
    ]
    graph = helper.make_graph(nodes, "up", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("per_channel", [True, False])
def test_transposed_weights_go_back_where_they_were(calibration: Calibration, per_channel: bool) -> None:
    source = upsampling()
    expected = [Probe(source, ["up"]).run(feeds)["up"] for feeds in calibration.feeds]

    def error(least_squares: bool) -> float:
        steps = QuantizeConfig().having(ToIntegers(weight_scale="channel" if per_channel else "tensor"))
        config = steps.without(
            "Compact", "ScaleOutputs", "ScaleInputs", *(() if least_squares else ("RoundLeastSquares",))
        )
        model = Quantizer(source, calibration, config).build()
        (weight,) = [t for t in model.graph.initializer if t.name == "up.weight_quantized"]
        (scale,) = [t for t in model.graph.initializer if t.name == "up.weight_scale"]
        steps = numpy_helper.to_array(scale).reshape(1, -1, 1, 1)
        float_weight = numpy_helper.to_array(weight).astype(np.float32) * steps
        for tensor in (rounded := load_graph(source).model).graph.initializer:
            if tensor.name == "up.weight":
                tensor.CopyFrom(numpy_helper.from_array(float_weight, "up.weight"))
        found = [Probe(rounded, ["up"]).run(feeds)["up"] for feeds in calibration.feeds]
        return float(np.mean([(x - y) ** 2 for x, y in zip(found, expected, strict=True)]))

    assert error(True) < 0.5 * error(False)
