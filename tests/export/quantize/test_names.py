"""Names that the quantiser gives, or its library, may be taken: the network computes what it did."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_graphs import Net, run

from clusir.errors import ExportError
from clusir.export.quantize.names import cleared
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

SIDE = 12
OURS = (".even", ".scale", ".inverse", ".int", ".cast", ".step", ".half")
LIBRARYS = ("_scale", "_zero_point", "_quantized", "_quantized_scale", "_quantized_zero_point",
            "_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output")  # fmt: skip


def network() -> Net:
    """Every step of the quantiser finds something: maps of loud and quiet channels in float sums, a narrow 1x1
    convolution that stays in float, large constants."""
    net = Net()
    loud = np.logspace(-1.5, 0, 8)

    def conv(name: str, source: str, out: np.ndarray, into: np.ndarray, size: int = 3) -> str:
        weight = net.rng.standard_normal((len(out), len(into), size, size)) / 6
        given = net.const(weight * out[:, None, None, None] / into[None, :, None, None], f"{name}.weight")
        return net.op("Conv", source, given, net.random(len(out), scale=0.1, name=f"{name}.bias"), name=name,
                      pads=[size // 2] * 4)  # fmt: skip

    even = np.ones(8)
    stem = conv("stem", net.input("image", 1, 3, SIDE, SIDE), loud, np.ones(3))
    hidden = net.op("Relu", conv("expand", stem, even, loud), name="hidden")
    x = net.op("Add", conv("project", hidden, loud, even), stem, name="x")
    again = conv("again", x, loud, loud)
    narrow = conv("narrow", net.op("Add", again, x, name="y"), np.ones(32), loud, 1)
    net.output(conv("head", net.op("Tanh", narrow, name="t"), np.ones(3), np.ones(32)))
    return net


def calibration() -> Calibration:
    rng = np.random.default_rng(5)
    feeds = [{"image": rng.random((1, 3, SIDE, SIDE), dtype=np.float32)} for _ in range(4)]
    return Calibration(feeds, [str(k) for k in range(4)], np.zeros((4, 0), np.float32))


def with_constants(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A constant of each of these names, each of another value, added to the picture that the network takes."""
    taken = onnx.ModelProto()
    taken.CopyFrom(model)
    last = "image"
    nodes = []
    for k, name in enumerate(names):
        taken.graph.initializer.append(numpy_helper.from_array(np.float32([0.01 * (k + 1)]), name))
        nodes.append(helper.make_node("Add", [last, name], [f"plus_{k}"], name=f"plus_{k}"))
        last = f"plus_{k}"
    inner = [onnx.NodeProto.FromString(n.SerializeToString()) for n in taken.graph.node]
    for node in inner:
        node.input[:] = [last if i == "image" else i for i in node.input]
    del taken.graph.node[:]
    taken.graph.node.extend([*nodes, *inner])
    onnx.checker.check_model(taken, full_check=True)
    return taken


def loss(model: onnx.ModelProto) -> float:
    """The largest difference that quantising makes, of the largest value."""
    built = Quantizer(model, calibration(), QuantizeConfig()).build()
    names = [t.name for t in built.graph.initializer] + [o for n in built.graph.node for o in n.output]
    assert len(set(names)) == len(names), "each name is given once"
    worst = 0.0
    for feeds in calibration().feeds:
        want, got = run(model, dict(feeds))["head"], run(built, dict(feeds))["head"]
        worst = max(worst, float(np.abs(want - got).max() / np.abs(want).max()))
    return worst


@pytest.mark.parametrize("ending", [*OURS, *LIBRARYS, "q"])
def test_constants_may_have_the_names_that_quantising_gives(ending: str) -> None:
    model = network().model()
    own = [t.name for t in model.graph.initializer] + [o for n in model.graph.node for o in n.output if o != "head"]
    given = [f"q{k}" for k in range(12)] if ending == "q" else [f"{name}{ending}" for name in own]
    names = [name for name in given if name not in own]
    assert loss(with_constants(model, names)) < 0.1


def test_a_port_whose_name_is_needed_is_refused() -> None:
    net = network()
    net.output(net.op("Abs", "t", name="y_scale"))
    with pytest.raises(ExportError, match="y_scale, an input or output, has a name that quantising needs"):
        cleared(net.model())
    assert cleared(model := network().model()) is model, "nothing is in the way"


def test_the_network_of_these_tests_is_changed_by_every_step() -> None:
    built = Quantizer(network().model(), calibration(), QuantizeConfig()).build()
    names = {t.name for t in built.graph.initializer} | {o for n in built.graph.node for o in n.output}
    for ending in (*OURS, "_quantized", "_DequantizeLinear_Output"):
        assert any(ending in name for name in names), ending
    assert "q0" in names


def test_quantising_is_quiet_and_leaves_the_loggers(caplog: pytest.LogCaptureFixture) -> None:
    """onnxruntime.quantization says on the root logger that it widens a scale for a bias that is large beside it."""
    net = network()
    for name, factor in (("project.weight", 1e-12), ("project.bias", 10.0)):
        tensor = next(t for t in net.constants if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    config = QuantizeConfig().without("Equalise", "ScaleOutputs", "ScaleInputs", "RoundLeastSquares")
    with caplog.at_level(logging.INFO):
        Quantizer(net.model(), calibration(), config).build()
        assert logging.getLogger().level == logging.INFO
    assert [record.getMessage() for record in caplog.records if record.name == "root"] == []
