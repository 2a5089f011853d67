"""The quantiser on small legal networks: what is shared, chained, grouped, transposed, dynamic, or an output."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Net, run

from clusir.errors import ExportError
from clusir.export.graph.session import Probe
from clusir.export.quantize.bias import add_zero_biases, correct_biases
from clusir.export.quantize.choice import Measure
from clusir.export.quantize.compact import store_as_float16
from clusir.export.quantize.equalise import Equalise, hidden_maps
from clusir.export.quantize.layers import Graph, Layer, load_graph, own_weights
from clusir.export.quantize.outputs import ScaleOutputs
from clusir.export.quantize.prepared import Prepared
from clusir.export.quantize.ranges import Calibration, TensorRange
from clusir.export.quantize.saturation import largest_pair_sums
from clusir.export.quantize.statistics import record
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

ALL = QuantizeConfig().without("KeepLittleArithmetic", "Compact")


def calibration(net: Net, crops: int = 6) -> Calibration:
    rng = np.random.default_rng(3)
    shapes = {n: [1 if isinstance(d, str) and k == 0 else 16 if isinstance(d, str) else d for k, d in enumerate(s)]
              for n, s in net.inputs.items()}  # fmt: skip
    feeds = [{n: rng.random(s, dtype=np.float32) for n, s in shapes.items()} for _ in range(crops)]
    return Calibration(feeds, [f"crop {k}" for k in range(crops)], np.zeros((crops, 0), np.float32))


def conv(net: Net, x: str, outputs: int, inputs: int, bias: bool = True, weight: str = "", **how: object) -> str:
    """A 3x3 convolution with weights of quite different loudness from channel to channel."""
    name = f"layer_{len(net.nodes)}.weight"
    if not weight:
        values = net.rng.standard_normal((outputs, inputs, 3, 3)) * np.exp(net.rng.normal(0, 1, (outputs, 1, 1, 1))) / 3
        weight = net.const(values, name)
    given = [net.random(outputs, scale=0.3)] if bias else []
    return net.op("Conv", x, weight, *given, **{"pads": [1] * 4, **how})


def equalised(net: Net) -> Graph:
    graph = load_graph(net.model())
    found = record(graph, hidden_maps(graph), {}, calibration(net), {})
    return Equalise().apply(Prepared(graph, tuple(graph.layers()), calibration(net), found)).graph


def chain(convolutions: int) -> Net:
    net = Net()
    value = conv(net, net.input("x", 1, 3, 12, 12), 6, 3)
    for _ in range(convolutions - 1):
        value = conv(net, net.op("Relu", value), 6, 6)
    net.output(value)
    return net


def difference(net: Net, after: onnx.ModelProto) -> float:
    """Largest difference on the calibration crops, of the largest value."""
    worst = 0.0
    for feeds in calibration(net).feeds:
        expected, found = run(net.model(), dict(feeds)), run(after, dict(feeds))
        for name, want in expected.items():
            assert np.isfinite(found[name]).all()
            worst = max(worst, float(np.abs(found[name] - want).max() / np.abs(want).max()))
    return worst


@pytest.mark.parametrize("convolutions", [2, 3, 4])
def test_chained_pairs_are_equalised_together(convolutions: int) -> None:
    net = chain(convolutions)
    graph = load_graph(net.model())
    after = equalised(net)
    assert any(not np.array_equal(graph.weight(n), after.weight(n)) for n in graph.initialisers)
    assert difference(net, after.model) < 1e-5


def test_equalisation_leaves_what_others_see() -> None:
    """A hidden map that is an output, a weight that two convolutions read."""
    net = Net()
    hidden = net.op("Relu", conv(net, net.input("x", 1, 3, 12, 12), 6, 3))
    net.output(conv(net, hidden, 4, 6), hidden)
    assert difference(net, equalised(net).model) < 1e-6
    net = Net()
    before = conv(net, net.input("x", 1, 6, 12, 12), 6, 6)
    net.output(net.op("Relu", before), before)
    net.output(conv(net, net.outputs[0], 4, 6))
    assert difference(net, equalised(net).model) < 1e-6
    for at in (0, 2):  # the first convolution of the pair shares its weight with a third one, or the second does
        net = Net()
        x = net.input("x", 1, 6, 12, 12)
        second = conv(net, net.op("Relu", conv(net, x, 6, 6)), 6, 6)
        net.output(second, conv(net, net.op("Abs", x), 6, 6, weight=net.nodes[at].input[1]))
        assert difference(net, equalised(net).model) < 1e-6


def test_a_weight_of_a_float_and_an_integer_layer_stays_float_in_the_one() -> None:
    net = Net()
    first = conv(net, net.input("x", 1, 6, 12, 12), 6, 6)
    shared = net.nodes[-1].input[1]
    second = conv(net, net.op("Relu", first), 6, 6, weight=shared)
    net.output(conv(net, net.op("Tanh", second), 6, 6), net.op("ReduceSum", shared))
    quantizer = Quantizer(net.model(), calibration(net), ALL)
    model = quantizer.build()
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert made.get(convolutions[0].input[1], "constant") == "constant"
    assert made[convolutions[1].input[1]] == "DequantizeLinear"
    assert len({layer.name for layer in quantizer.layers}) == 3
    report = quantizer.report(model)
    assert report.kept[quantizer.layers[0].name] == "first convolution"
    assert quantizer.layers[1].name in report.quantised
    assert difference(net, model) < 0.1
    assert own_weights(chain(2).model()).ByteSize() == chain(2).model().ByteSize(), "nothing is shared, nothing copied"


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_scales_of_maps_leave_shared_constants_alone(shared: str) -> None:
    """Two convolutions that float sums read, with one weight (or one bias)."""
    net = Net()
    x = net.op("Tanh", net.op("Add", conv(net, net.input("x", 1, 6, 12, 12), 6, 6), net.random(1, 6, 1, 1)))
    one = conv(net, x, 6, 6)
    weight, bias = net.nodes[-1].input[1:]
    other = net.op("Conv", net.op("Abs", x), weight if shared == "weight" else net.random(6, 6, 3, 3, scale=0.2),
                   bias if shared == "bias" else net.random(6), pads=[1] * 4)  # fmt: skip
    total = net.op("Add", net.op("Add", x, one), other)
    net.output(conv(net, net.op("Relu", total), 3, 6))
    model = Quantizer(net.model(), calibration(net), ALL).build()
    assert difference(net, model) < 0.15
    # The step by itself, without the Quantizer, which gives each layer constants of its own before.
    graph = load_graph(net.model())
    step = ScaleOutputs().apply(Measure().apply(Prepared(graph, tuple(graph.layers()), calibration(net))))
    assert difference(net, step.graph.model) < 1e-5


def test_a_map_that_is_an_output_has_no_scale_of_its_own() -> None:
    net = Net()
    x = net.op("Tanh", conv(net, net.input("x", 1, 6, 12, 12), 6, 6))
    seen = conv(net, x, 6, 6)
    net.output(conv(net, net.op("Relu", net.op("Add", x, seen)), 3, 6), seen)
    quantizer = Quantizer(net.model(), calibration(net), ALL)
    assert not any(".even" in o for n in quantizer.build().graph.node for o in n.output if o.startswith(seen))
    assert difference(net, quantizer.build()) < 0.15


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_bias_takes_back_the_mean_error_of_its_own_group(kind: str, groups: int) -> None:
    net = Net()
    x = net.input("x", 1, 4, 16, 16)
    shape = (6, 4 // groups, 2, 2) if kind == "Conv" else (4, 6 // groups, 2, 2)
    weight = net.random(*shape, name="w")
    stride = [1, 1] if kind == "Conv" else [2, 2]
    net.output(net.op(kind, x, weight, name="y", group=groups, strides=stride))
    graph = load_graph(add_zero_biases(load_graph(net.model())))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    rng = np.random.default_rng(5)
    floats = graph.weight("w").astype(np.float64)
    integers = np.round(floats / 0.1 + rng.uniform(-0.4, 0.6, floats.shape)).astype(np.int8)
    bias = next(n for n in model.graph.node if n.op_type == kind).input[2]
    made = {"w_quantized": integers, "w_scale": np.float32(0.1)}
    made |= {f"{bias}_quantized": np.zeros(6, np.int32), f"{bias}_quantized_scale": np.float32(1e-5)}
    for name, value in made.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    means = np.array([0.2, -1.0, 3.0, 0.7])
    correct_biases(model, graph, {"w": Layer("w", "n", shape, 0)}, {"x": TensorRange(mean=means)})
    found = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == f"{bias}_quantized") * 1e-5
    # What the rounded weight makes of a flat picture of these means, away from borders, against the float one.
    flat = {"x": np.broadcast_to(means.astype(np.float32)[None, :, None, None], (1, 4, 16, 16)).copy()}
    exact = run(net.model(), flat)["y"]
    changed = net.model()
    tensor = next(t for t in changed.graph.initializer if t.name == "w")
    tensor.CopyFrom(numpy_helper.from_array((integers * 0.1).astype(np.float32), "w"))
    shift = (run(changed, flat)["y"] - exact)[:, :, 2:-2, 2:-2].mean(axis=(0, 2, 3))
    assert np.abs(shift).max() > 0.03
    assert np.allclose(found, -shift, atol=1e-4)


def test_a_transposed_convolution_is_corrected_by_the_quantiser() -> None:
    net = Net()
    hidden = net.op("Relu", conv(net, net.input("x", 1, 3, 12, 12), 8, 3))
    up = net.op(
        "ConvTranspose", hidden, net.random(8, 8, 2, 2, name="up.weight"), net.random(8, name="up.bias"), strides=[2, 2]
    )
    net.output(conv(net, net.op("Relu", up), 3, 8))
    biases = []
    for corrected in (True, False):
        config = ALL.without("RoundLeastSquares", *(() if corrected else ("CorrectBiases",)))
        model = Quantizer(net.model(), calibration(net), config).build()
        biases.append(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "up.bias_quantized"))
    assert not np.array_equal(*biases)


def test_costs_are_those_of_the_multiplications() -> None:
    net = Net()
    hidden = net.op("Relu", conv(net, net.input("x", 1, 3, 16, 16), 8, 3))
    net.output(net.op("ConvTranspose", hidden, net.random(8, 4, 2, 2, name="up.weight"), strides=[2, 2]))
    layers = {layer.name: layer for layer in load_graph(net.model()).layers()}
    assert layers["up.weight"].macs == 16 * 16 * 8 * 4 * 4
    assert layers["layer_0.weight"].macs == 16 * 16 * 3 * 8 * 9
    open_net = Net()
    hidden = net.op("Relu", "x")
    hidden = open_net.op("Relu", conv(open_net, open_net.input("x", "n", 3, "height", "width"), 8, 3))
    pooled = open_net.op("GlobalAveragePool", hidden)
    scale = open_net.op("Conv", pooled, open_net.random(8, 8, 1, 1, name="vector.weight"))
    open_net.output(conv(open_net, open_net.op("Mul", hidden, scale), 3, 8))
    layers = {layer.name: layer for layer in load_graph(open_net.model()).layers()}
    assert layers["layer_0.weight"].macs == 128 * 128 * 3 * 8 * 9
    assert layers["vector.weight"].keep == "acts on one vector per picture"
    assert layers["vector.weight"].macs == 64


def test_nodes_have_names_of_their_own() -> None:
    net = chain(3)
    model = net.model()
    for node, name in zip(model.graph.node, ("Conv_2", "same", "", "same", "Relu_3"), strict=True):
        node.name = name
    names = [n.name for n in load_graph(model).model.graph.node]
    assert len(set(names)) == 5
    assert names[0] == "Conv_2"
    assert "" not in names


def test_a_layer_that_is_not_there_is_no_layer_to_leave_in_float() -> None:
    net = chain(3)
    quantizer = Quantizer(net.model(), calibration(net), ALL)
    with pytest.raises(ExportError, match=r"no layer 'no\.such\.layer' to leave in float"):
        quantizer.build(["no.such.layer"])


def test_loops_are_refused_and_defaults_are_no_weights() -> None:
    net = chain(2)
    net.defaults.append("layer_2.weight")
    assert [layer.name for layer in load_graph(net.model()).layers()] == ["layer_0.weight"]
    model = chain(2).model()
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["l"], name="round", body=body))
    with pytest.raises(ExportError, match="Loop round holds a graph of its own"):
        load_graph(model)


def test_inputs_of_grouped_layers_have_one_scale() -> None:
    net = Net()
    x = net.op("Tanh", conv(net, net.input("x", 1, 8, 12, 12), 8, 8))
    gained = net.op("Mul", x, net.const(np.logspace(-1, 1, 8).reshape(1, 8, 1, 1)))
    grouped = conv(net, gained, 8, 4, group=2)
    net.output(conv(net, net.op("Tanh", grouped), 3, 8))
    assert difference(net, Quantizer(net.model(), calibration(net), ALL).build()) < 0.15


def test_rounding_for_least_squares_reckons_with_the_rounded_input() -> None:
    """With an input that is rounded coarsely, its noise joins the moments: faint directions count as well."""
    from clusir.export.quantize.rounding import round_weights

    net = Net()
    hidden = net.op("Relu", conv(net, net.input("x", 1, 3, 12, 12), 6, 3))
    net.output(conv(net, net.op("Relu", conv(net, hidden, 6, 6)), 3, 6))
    quantizer = Quantizer(net.model(), calibration(net), ALL.without("Equalise", "ScaleInputs", "ScaleOutputs"))
    graph, layer = quantizer.graph, quantizer.layers[1]
    moments = quantizer.prepare().statistics.moments
    found = []
    for loud in (1.0, 1e6):
        model = onnx.ModelProto()
        source = graph.node(layer).input[0]
        values = graph.weight(layer.name)
        step = np.abs(values).max() / 64
        for name, value in (
            (f"{layer.name}_quantized", np.round(values / step).astype(np.int8)),
            (f"{layer.name}_scale", np.float32(step)),
        ):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        before = numpy_helper.to_array(model.graph.initializer[0]).copy()
        round_weights(model, graph, [layer], {source: TensorRange(0.0, loud)}, moments, {})
        found.append(np.count_nonzero(numpy_helper.to_array(model.graph.initializer[0]) != before))
    assert found[1] <= 2 < found[0], "against white noise the nearest integer is best"


def test_ranges_hold_what_they_saw() -> None:
    net = chain(2)
    graph = load_graph(net.model())
    seen = record(graph, net.outputs, {}, calibration(net), {}).maps[net.outputs[0]].range("minmax")
    values = [Probe(graph.model).run(f)[net.outputs[0]] for f in calibration(net).feeds]
    assert seen.low <= min(v.min() for v in values)
    assert seen.high >= max(v.max() for v in values)
    assert np.allclose(seen.mean, np.mean([v.mean(axis=(0, 2, 3)) for v in values], axis=0), atol=1e-6)


def test_a_vector_of_a_picture_stays_in_float() -> None:
    net = Net()
    hidden = net.op("Relu", conv(net, net.input("x", 1, 3, 12, 12), 8, 3))
    vector = net.op("Conv", net.op("GlobalAveragePool", hidden), net.random(8, 8, 1, 1, name="vector.weight"))
    again = net.op("Conv", net.op("Relu", vector), net.random(8, 8, 3, 3, name="padded.weight"), pads=[1] * 4)
    net.output(conv(net, net.op("Mul", hidden, net.op("Sigmoid", again)), 3, 8))
    kept = {layer.name: layer.keep for layer in Quantizer(net.model(), calibration(net), ALL).layers}
    assert kept["vector.weight"] == kept["padded.weight"] == "acts on one vector per picture"


def test_constants_that_are_kept_are_not_rounded_to_float16() -> None:
    net = Net()
    hidden = net.op("Conv", net.input("x", 1, 8, 8, 8), net.random(8, 8, 3, 3, name="kept"), pads=[1] * 4)
    net.output(net.op("Conv", hidden, net.random(8, 8, 3, 3, name="rounded"), pads=[1] * 4))
    model = net.model()
    assert store_as_float16(model, {"kept"}) == 1
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types == {"kept": onnx.TensorProto.FLOAT, "rounded.half": onnx.TensorProto.FLOAT16}


def test_pair_sums_of_a_transposed_convolution_are_those_of_its_outputs() -> None:
    """Weights are inputs x outputs there: large ones of one output channel meet, those of one input channel do not."""
    for values, largest in (([[64, 1], [64, 1]], 128), ([[64, 64], [1, 1]], 65), ([[-64, 0], [-63, 5]], 127)):
        net = Net()
        x = net.input("x", 1, 2, 3, 3)
        weight = net.const(np.array(values)[:, :, None, None], "w", np.int8)
        real = net.op("DequantizeLinear", weight, net.const(0.1))
        net.output(net.op("ConvTranspose", x, real))
        assert largest_pair_sums(net.model()) == {"w": 255 * largest}
