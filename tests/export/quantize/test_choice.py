"""What is quantised and what is not, hidden channels scaled to like ranges, and how float weights are stored."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from clusir.export.graph.session import Probe
from clusir.export.quantize.choice import Measure
from clusir.export.quantize.compact import store_as_int8
from clusir.export.quantize.equalise import Equalise
from clusir.export.quantize.layers import load_graph
from clusir.export.quantize.prepared import Prepared
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.steps import QuantizeConfig, Quantizer
from clusir.rounding import is_dense

WIDTH, SIZE = 8, 16


def network(seed: int = 0) -> ModelProto:
    """stem - seen (3x3) - routing of its mean; narrow (1x1); expand - ReLU - gain by the posterior - project; head."""
    rng = np.random.default_rng(seed)
    constants: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def op(kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n_{output}", **attributes))
        return output

    def conv(name: str, x: str, out: int, into: int, kernel: int = 3) -> str:
        scale = np.exp(1.2 * rng.standard_normal((out, 1, 1, 1))) / (kernel * np.sqrt(into))
        weight = constant(f"{name}.weight", (rng.standard_normal((out, into, kernel, kernel)) * scale).astype("f4"))
        bias = constant(f"{name}.bias", (0.1 * rng.standard_normal(out)).astype("f4"))
        return op("Conv", [x, weight, bias], name, pads=[kernel // 2] * 4)

    x = op("Relu", [conv("seen", conv("stem", "image", WIDTH, 3), WIDTH, WIDTH)], "features")
    mean = op("Flatten", [op("GlobalAveragePool", [x], "pooled")], "mean")
    logits = op("MatMul", [mean, constant("choice", (3 * rng.standard_normal((WIDTH, 2))).astype("f4"))], "logits")
    op("Softmax", [logits], "posterior", axis=1)
    op("Softmax", [op("Neg", ["logits"], "other")], "gate", axis=1)
    x = op("Add", [x, conv("narrow", x, WIDTH, WIDTH, 1)], "sum")
    hidden = op("Relu", [conv("expand", x, WIDTH, WIDTH)], "hidden")
    weights = constant("by_cluster", rng.standard_normal((2, WIDTH)).astype("f4"))
    gain = op("MatMul", ["posterior", weights], "gain")
    shape = constant("shape", np.array([-1, WIDTH, 1, 1]))
    gained = op("Mul", [hidden, op("Reshape", [gain, shape], "gain_4d")], "gained")
    x = op("Add", [x, conv("project", gained, WIDTH, WIDTH)], "out")
    op("Add", ["image", conv("head", x, 3, WIDTH)], "restored")
    picture = ["image", "restored"]
    ports = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, SIZE, SIZE]) for name in picture}
    ports |= {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("posterior", "gate")}
    outputs = [ports[name] for name in ("restored", "posterior", "gate")]
    graph = helper.make_graph(nodes, "choice", [ports["image"]], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(5)
    feeds = [{"image": rng.random((1, 3, SIZE, SIZE)).astype("f4")} for _ in range(6)]
    return Calibration(feeds, [str(i) for i in range(6)], np.zeros((6, 0), np.float32))


@pytest.mark.parametrize(
    ("shape", "dense"),
    [
        ((32, 32, 3, 3), True), ((64, 32, 2, 2), True), ((96, 1, 3, 3), False), ((96, 96, 1, 1), False),
        ((510, 96, 1, 1), True), ((8, 3, 3, 3), True),
    ],
)  # fmt: skip
def test_which_convolutions_pay(shape: tuple[int, ...], dense: bool) -> None:
    assert is_dense(shape) is dense


def test_the_kept_layers_and_their_reasons(calibration: Calibration) -> None:
    quantizer = Quantizer(network(), calibration)
    report = quantizer.report(quantizer.build())
    assert report.kept == {
        "stem.weight": "first convolution",
        "seen.weight": "a router sees it",
        "narrow.weight": "little arithmetic",
        "head.weight": "last convolution",
    }
    everything = Quantizer(network(), calibration, QuantizeConfig().without("KeepLittleArithmetic", "KeepRouting"))
    assert set(everything.report(everything.build()).kept) == {"stem.weight", "head.weight"}


def test_routing_of_the_whole_graph_is_that_of_float32(calibration: Calibration) -> None:
    source = network()
    expected = [Probe(source).run(feeds)["gate"] for feeds in calibration.feeds]

    def error(config: QuantizeConfig) -> float:
        probe = Probe(Quantizer(source, calibration, config).build())
        found = [probe.run(feeds)["gate"] for feeds in calibration.feeds]
        return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))

    plain = QuantizeConfig().without("Compact")
    exact, rounded = error(plain), error(plain.without("KeepRouting"))
    assert exact < 1e-6
    assert rounded > 100 * max(exact, 1e-7)


def test_equalising_changes_nothing_in_float_and_evens_the_channels(calibration: Calibration) -> None:
    before = load_graph(network())
    after = Equalise().apply(Measure().apply(Prepared(before, tuple(before.layers()), calibration))).graph
    tensors = ["hidden", "gained"]
    a, b = Probe(before.model, tensors), Probe(after.model, tensors)
    spreads = []
    for probe in (a, b):
        values = [probe.run(feeds) for feeds in calibration.feeds]
        peak = np.max([np.abs(v["gained"]).max(axis=(0, 2, 3)) for v in values], axis=0)
        spreads.append(peak.max() / peak.min())
    for feeds in calibration.feeds:
        assert np.abs(a.run(feeds)["restored"] - b.run(feeds)["restored"]).max() < 1e-4
    assert spreads[1] < 0.6 * spreads[0]
    assert not np.array_equal(before.weight("expand.weight"), after.weight("expand.weight"))
    assert np.array_equal(before.weight("seen.weight"), after.weight("seen.weight")), "a sum reads it too"


def test_equalised_files_are_closer_to_float(calibration: Calibration) -> None:
    source = network(3)
    expected = [Probe(source).run(feeds)["restored"] for feeds in calibration.feeds]

    def error(equalised: bool) -> float:
        config = QuantizeConfig().without("ScaleInputs", "RoundLeastSquares", *(() if equalised else ("Equalise",)))
        probe = Probe(Quantizer(source, calibration, config).build())
        found = [probe.run(feeds)["restored"] for feeds in calibration.feeds]
        return float(np.mean([(x - y) ** 2 for x, y in zip(found, expected, strict=True)]))

    assert error(True) < 0.8 * error(False)


def test_eight_bit_storage_is_folded_away_and_rounds_to_half_a_step() -> None:
    weight = (
        np.random.default_rng(0).standard_normal((6, 40, 1, 1)).astype("f4") * np.logspace(0, 2, 6)[:, None, None, None]
    )
    weight = weight.astype("f4")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", 40), ("y", 6))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert store_as_int8(model, {"other"}) == 0
    assert store_as_int8(model, {"w"}) == 1
    onnx.checker.check_model(model, full_check=True)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert stored["w.int"].dtype == np.int8
    step = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    assert np.all(np.abs(stored["w.int"] * stored["w.step"] - weight) <= 0.5001 * step)
    x = np.ones((1, 40, 4, 4), np.float32)
    expected = (stored["w.int"] * stored["w.step"])[:, :, 0, 0].sum(1)
    assert np.allclose(Probe(model).run({"x": x})["y"][0, :, 0, 0], expected, rtol=1e-4, atol=1e-3)
