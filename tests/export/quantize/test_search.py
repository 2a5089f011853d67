"""A search for networks on which the quantiser is wrong: its file stays within the network's own rounding noise.

That noise is measured: the float network again, with every weight rounded to seven bits and with uniform noise of one
step at the input and the output of each layer. ``CLUSIR_SEARCH=300`` tries that many networks instead of twelve.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_graphs import Net, run

from clusir.export.graph.session import Probe
from clusir.export.quantize.layers import load_graph, own_weights
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

SEARCH = settings(
    max_examples=int(os.environ.get("CLUSIR_SEARCH", "12")),
    derandomize="CLUSIR_SEARCH" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SIDE, CROPS = 12, 4


def network(data: st.DataObject) -> Net:
    """Two to five layers: plain, grouped, strided back by a transposed one, with gains, sums, shared weights, loud and
    faint channels, an output in the middle."""

    def one(*values: object) -> object:
        return data.draw(st.sampled_from(values))

    net = Net(seed=data.draw(st.integers(0, 99)))
    width = one(4, 6, 8)
    scale = float(one(1.0, 1.0, 1e-4, 1e4))

    def conv(x: str, outputs: int, inputs: int) -> str:
        groups = one(1, 1, 1, 2) if inputs % 2 == outputs % 2 == 0 else 1
        values = net.rng.standard_normal((outputs, inputs // groups, 3, 3)) / (3 * np.sqrt(inputs / groups))
        values *= np.exp(net.rng.normal(0, one(0.0, 1.0), (outputs, 1, 1, 1)))
        shared = [t.name for t in net.constants if tuple(t.dims) == values.shape]
        weight = shared[0] if shared and one(False, False, True) else net.const(values, f"l{len(net.nodes)}.weight")
        bias = [net.random(outputs, scale=0.2)] if one(True, False) else []
        return net.op("Conv", x, weight, *bias, pads=[1] * 4, group=groups)

    value = net.op("Mul", conv(net.input("x", 1, 3, SIDE, SIDE), width, 3), net.const(scale))
    for _ in range(data.draw(st.integers(1, 3))):
        before = value
        value = conv(net.op(str(one("Relu", "Relu", "Tanh")), value) if one(True, True, False) else value, width, width)
        match one("plain", "plain", "sum", "gain", "up", "pool", "output"):
            case "sum":
                value = net.op("Add", before, value)
            case "gain":
                value = net.op("Mul", value, net.random(1, width, 1, 1))
            case "up":
                down = net.op("Conv", value, net.random(width, width, 2, 2, scale=0.3), strides=[2, 2])
                up = net.random(width, width, 2, 2, scale=0.3)
                value = net.op("ConvTranspose", down, up, net.random(width, scale=0.1), strides=[2, 2])
            case "pool":
                value = net.op("Mul", value, net.op("Sigmoid", net.op("GlobalAveragePool", value)))
            case "output":
                net.output(value)
    net.output(conv(net.op("Relu", value), 3, width))
    return net


def noisy(model: onnx.ModelProto, quantizer: Quantizer, feeds: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The float network with what rounding does to each integer layer put in by hand."""
    graph = load_graph(own_weights(load_graph(model).model))
    names = {layer.node for layer in quantizer.candidates}
    layers = [n for n in graph.convolutions() if n.name in names]
    watched = sorted({t for n in layers for t in (n.input[0], n.output[0])})
    probe = Probe(graph.model, watched)
    seen = [probe.run(f) for f in feeds]
    step = {
        t: (max(0.0, *(float(v[t].max()) for v in seen)) - min(0.0, *(float(v[t].min()) for v in seen))) / 255
        for t in watched
    }
    rng, out = np.random.default_rng(0), onnx.ModelProto()
    out.CopyFrom(graph.model)
    tensors = {t.name: t for t in out.graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def noise(name: str, source: str, target: str) -> None:
        shape = seen[0][name].shape
        values = (rng.random(shape) - 0.5) * step[name]
        out.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{target}.noise"))
        nodes.append(helper.make_node("Add", [source, f"{target}.noise"], [target], name=f"{target}.add"))

    for node in out.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        axes = tuple(k for k in range(weight.ndim) if k != (0 if node.op_type == "Conv" else 1))
        size = np.maximum(np.abs(weight).max(axis=axes, keepdims=True), 1e-30) / 63
        rounded = (np.round(weight / size) * size).astype(np.float32)
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
        source, result = node.input[0], node.output[0]
        noise(source, source, f"{node.name}.in")
        node.input[0], node.output[0] = f"{node.name}.in", f"{node.name}.out"
        nodes.append(node)
        noise(result, f"{node.name}.out", result)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del out.graph.node[:], out.graph.value_info[:]
    out.graph.node.extend(copies)
    return out


@SEARCH
@given(st.data())
def test_a_network_stays_within_its_own_rounding_noise(data: st.DataObject) -> None:
    net = network(data)
    model = net.model()
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.random((1, 3, SIDE, SIDE), dtype=np.float32)} for _ in range(CROPS)]
    calibration = Calibration(feeds, [str(k) for k in range(CROPS)], np.zeros((CROPS, 0), np.float32))
    quantizer = Quantizer(
        model,
        calibration,
        QuantizeConfig().without("KeepLittleArithmetic", *(["Compact"] if data.draw(st.booleans()) else [])),
    )
    made, rough = quantizer.build(), noisy(model, quantizer, feeds)
    errors: dict[str, list[list[float]]] = {}
    for crop in feeds:
        expected, found, noise = run(model, crop), run(made, crop), run(rough, crop)
        for name, want in expected.items():
            pair = [float(np.mean((other[name] - want) ** 2)) for other in (found, noise)]
            errors.setdefault(name, []).append([*pair, float(np.mean(want**2))])
    for name, rows in errors.items():
        error, noise, power = np.sqrt(np.mean(rows, axis=0))
        assert error <= 3 * noise + 1e-3 * power, (name, error, noise, power)
