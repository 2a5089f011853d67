"""Maps with a scale per channel compute the same in float and lose less in integers; no 16-bit sum can saturate."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from clusir.errors import ExportError
from clusir.export.graph.session import Probe
from clusir.export.quantize.choice import Measure
from clusir.export.quantize.inputs import ScaleInputs
from clusir.export.quantize.integers import ToIntegers
from clusir.export.quantize.layers import load_graph
from clusir.export.quantize.outputs import ScaleOutputs
from clusir.export.quantize.prepared import Prepared
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.saturation import check_pair_sums, largest_pair_sums
from clusir.export.quantize.steps import QuantizeConfig, Quantizer
from clusir.rounding import error_left
from clusir.runtimes import open_runner
from clusir.spec import ModelSpec, SizeRequirements

WIDTH, SIZE = 8, 16


def network(above: float = 0.0) -> ModelProto:
    """stem; x + project(relu(expand(x))) with loud and quiet channels; a transposed convolution; head. ``above``: how
    far every second channel of project lies above zero, the others below."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (WIDTH, 3), "expand": (WIDTH, WIDTH), "project": (WIDTH, WIDTH), "up": (WIDTH, WIDTH)}
    tensors = {n: rng.standard_normal((*s, 3, 3)) / 6 for n, s in (shapes | {"head": (3, WIDTH)}).items()}
    loudness = np.logspace(-1.5, 0, WIDTH)
    tensors["stem"] *= loudness[:, None, None, None]
    tensors["expand"] /= loudness[None, :, None, None]
    tensors["project"] *= loudness[:, None, None, None]
    tensors["up"] *= loudness[None, :, None, None]
    tensors["head"] /= np.tile(loudness, 1)[None, :, None, None]
    constants = [numpy_helper.from_array(v.astype("f4"), f"{n}.weight") for n, v in tensors.items()]
    constants += [numpy_helper.from_array(rng.standard_normal(len(v)).astype("f4") / 9, f"{n}.bias")
                  for n, v in tensors.items()]  # fmt: skip
    if above:
        far = np.resize([above, -above], WIDTH) * loudness
        constants = [numpy_helper.from_array(far.astype("f4"), c.name) if c.name == "project.bias" else c
                     for c in constants]  # fmt: skip

    def conv(name: str, source: str, op: str = "Conv") -> onnx.NodeProto:
        return helper.make_node(op, [source, f"{name}.weight", f"{name}.bias"], [name], name=name, pads=[1] * 4)

    nodes = [
        conv("stem", "image"), conv("expand", "stem"), helper.make_node("Relu", ["expand"], ["hidden"], name="relu"),
        conv("project", "hidden"), helper.make_node("Add", ["project", "stem"], ["x"], name="add"),
        conv("up", "x", "ConvTranspose"), helper.make_node("Add", ["up", "project"], ["y"], name="join"),
        conv("head", "y"),
    ]  # fmt: skip
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, SIZE, SIZE]) for n in ("image", "head")]
    graph = helper.make_graph(nodes, "outputs", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(5)
    feeds = [{"image": rng.random((1, 3, SIZE, SIZE)).astype("f4")} for _ in range(6)]
    return Calibration(feeds, [str(i) for i in range(6)], np.zeros((6, 0), np.float32))


def test_scaling_changes_nothing_in_float_and_evens_the_channels(calibration: Calibration) -> None:
    graph = load_graph(network())
    prepared = ScaleOutputs().apply(Measure().apply(Prepared(graph, tuple(graph.layers()), calibration)))
    assert prepared.notes == ("2 layers write maps with a scale per channel, 1 of them around the middle of each",)
    scaled = prepared.graph.model
    made = {name for node in scaled.graph.node for name in node.output}
    assert {"project.even", "up.even"} <= made
    assert "expand.even" not in made, "a ReLU reads expand"
    onnx.checker.check_model(scaled, full_check=True)
    watch = ["project", "project.even", "up", "up.even"]
    a, b = Probe(graph.model, ["project", "up"]), Probe(scaled, watch)
    peaks: dict[str, list[np.ndarray]] = {name: [] for name in watch}
    for feeds in calibration.feeds:
        before, after = a.run(feeds), b.run(feeds)
        for name in ("project", "up", "head"):
            assert np.abs(before[name] - after[name]).max() < 1e-4 * np.abs(before[name]).max()
        for name in watch:
            peaks[name].append(np.abs(after[name]).max(axis=(0, 2, 3)))
    for name in ("project", "up"):
        spread, even = (np.max(peaks[n], axis=0) for n in (name, f"{name}.even"))
        assert spread.max() / spread.min() > 5
        assert even.max() / even.min() < 2


def test_channels_far_from_zero_are_rounded_around_their_middle(calibration: Calibration) -> None:
    source = network(above=9.0)
    graph = load_graph(source)
    prepared = ScaleOutputs().apply(Measure().apply(Prepared(graph, tuple(graph.layers()), calibration)))
    assert prepared.notes == ("2 layers write maps with a scale per channel, 2 of them around the middle of each",)
    onnx.checker.check_model(prepared.graph.model, full_check=True)
    statistics = prepared.statistics.maps["project.even"]
    whole, moved = Probe(graph.model, ["project"]), Probe(prepared.graph.model, ["project", "project.even"])
    seen = []
    for feeds in calibration.feeds:
        before, after = whole.run(feeds), moved.run(feeds)
        assert np.abs(before["project"] - after["project"]).max() < 1e-4 * np.abs(before["project"]).max()
        seen.append(after["project.even"])
    low, high = (end(np.concatenate(seen), axis=(0, 2, 3)) for end in (np.min, np.max))
    assert (low < 0).all()
    assert (high > 0).all()
    np.testing.assert_allclose((statistics.low, statistics.high), (low, high), rtol=1e-3, atol=1e-3)
    assert int(statistics.counts.sum()) == sum(x.size for x in seen)
    expected = [whole.run(feeds)["project"] for feeds in calibration.feeds]

    def error(centre: bool) -> float:
        config = QuantizeConfig().having(ScaleOutputs(centre=centre))
        probe = Probe(Quantizer(source, calibration, config).build(), ["project"])
        found = [probe.run(feeds)["project"] for feeds in calibration.feeds]
        return float(np.mean([(x - y) ** 2 for x, y in zip(found, expected, strict=True)]))

    assert error(True) < 0.25 * error(False)


def test_scaling_the_inputs_changes_nothing_in_float(calibration: Calibration) -> None:
    graph = load_graph(network())
    prepared = ScaleInputs().apply(Measure().apply(Prepared(graph, tuple(graph.layers()), calibration)))
    assert prepared.notes == ("2 layers read maps with a scale per channel",), "a ReLU writes what project reads"
    scaled = prepared.graph.model
    inverse = {t.name: numpy_helper.to_array(t) for t in scaled.graph.initializer if t.name.endswith(".inverse")}
    onnx.checker.check_model(scaled, full_check=True)
    a, b = Probe(graph.model, ["stem", "x"]), Probe(scaled, ["stem.even", "x.even"])
    for feeds in calibration.feeds:
        before, after = a.run(feeds), b.run(feeds)
        assert np.abs(before["head"] - after["head"]).max() < 1e-4 * np.abs(before["head"]).max()
        for name in ("stem", "x"):
            np.testing.assert_allclose(after[f"{name}.even"] / inverse[f"{name}.inverse"], before[name], atol=1e-5)
    spread = np.abs(before["stem"]).max(axis=(0, 2, 3))
    assert spread.max() / spread.min() > 5
    even = np.abs(after["stem.even"]).max(axis=(0, 2, 3))
    assert even.max() / even.min() < 2


@pytest.mark.parametrize("option", ["ScaleOutputs", "ScaleInputs"])
def test_scaled_maps_are_closer_to_float(calibration: Calibration, option: str) -> None:
    source = network()
    expected = [Probe(source).run(feeds)["head"] for feeds in calibration.feeds]

    def error(scaled: bool) -> float:
        probe = Probe(Quantizer(source, calibration, QuantizeConfig().without(*(() if scaled else (option,)))).build())
        found = [probe.run(feeds)["head"] for feeds in calibration.feeds]
        return float(np.mean([(x - y) ** 2 for x, y in zip(found, expected, strict=True)]))

    assert error(True) < 0.5 * error(False)


def test_a_layer_that_is_put_back_to_float_is_left_as_it_was(calibration: Calibration) -> None:
    quantizer = Quantizer(network(), calibration, QuantizeConfig().without("Compact"))
    names = {name for node in quantizer.build({"project.weight"}).graph.node for name in node.output}
    assert {"up.even", "stem.even", "x.even"} <= names
    assert "project.even" not in names
    names = {name for node in quantizer.build({"expand.weight"}).graph.node for name in node.output}
    assert "stem.even" not in names


def saturating(weights: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Dot products as vpmaddubsw and vpaddd make them: pairs of products in 16 bits that stop at their limits."""
    products = weights.astype(np.int64) * activations.astype(np.int64)
    pairs = products.reshape(len(products), -1, 2).sum(2)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(1)


@pytest.mark.parametrize("reduce_range", [True, False])
def test_sums_of_two_products_fit_16_bits_with_seven_bit_weights(calibration: Calibration, reduce_range: bool) -> None:
    config = QuantizeConfig().without("CorrectBiases").having(ToIntegers(weight_bits=7 if reduce_range else 8))
    model = Quantizer(network(), calibration, config).build()
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    bounds = largest_pair_sums(model)
    assert len(bounds) == 3
    exact = []
    for name, bound in bounds.items():
        rows = weights[name] if "up" not in name else weights[name].swapaxes(0, 1)
        rows = np.sort(rows.reshape(len(rows), -1), axis=1)  # the worst neighbours
        worst = [np.where(rows > 0, 255, 0), np.where(rows < 0, 255, 0)]
        exact += [np.array_equal(saturating(rows, x), (rows.astype(np.int64) * x).sum(1)) for x in worst]
        assert (bound <= 2**15 - 1) is reduce_range
    if reduce_range:
        assert all(exact)
        check_pair_sums(model)
    else:
        assert not all(exact)
        with pytest.raises(ExportError, match="quantise with weights of 7 bits"):
            check_pair_sums(model)


def test_openvino_computes_the_file_in_integers(calibration: Calibration, tmp_path: Path) -> None:
    """Folding the integers into floats changes no result, so only the kernels tell."""
    model = network()
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    built, path = Quantizer(model, calibration, QuantizeConfig()).build(), tmp_path / "m.int8.onnx"
    spec = ModelSpec(
        input_name="image", output_name="head", size=SizeRequirements(static_px=SIZE), tile_px=SIZE, halo_px=0
    )
    helper.set_model_props(built, spec.to_metadata())
    onnx.save(built, path)
    with open_runner(path, backend="openvino", device="cpu", threads=1) as runner:
        kernels = [operation.get_rt_info() for operation in runner._compiled.get_runtime_model().get_ops()]
    precisions = [str(k["runtimePrecision"].value) for k in kernels if k["layerType"].value == "Convolution"]
    assert sum(name in ("u8", "i8") for name in precisions) == 2, "expand and project"


def test_a_layer_without_weights_gains_nothing_from_scales() -> None:
    assert error_left(np.zeros(3), np.array([1.0, 2.0, 4.0])) == 1.0
    assert error_left(np.array([1.0, 0.0]), np.array([1.0, 4.0])) == 0.25
