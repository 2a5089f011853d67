"""INT8 of runtimes with a format of their own: integers of the quantiser, measured before they take their place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from small_graphs import Net

from clusir.calibration.balance import BalanceConfig
from clusir.cli.export import main
from clusir.errors import BudgetError, UnsupportedModelError, ValidationError
from clusir.export.formats.hosts import selftest
from clusir.export.formats.hosts.base import Source
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import export_targets, open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.integers import Int8Config, IntegerGraph, Integers, read_integers, without_rounding
from clusir.export.formats.hosts.litert import Litert
from clusir.export.formats.hosts.ncnn.host import Ncnn
from clusir.export.formats.hosts.registry import TARGETS
from clusir.export.graph.session import Probe
from clusir.export.passes.simplify import AttachMetadata
from clusir.spec import ModelSpec, SizeRequirements
from tests.export.formats.hosts.own_host import Own
from tests.needs import skip

SIDE = 64
FEW = Int8Config(balance=BalanceConfig(size=4, pool=8, minimum=1), evaluation_crops=1)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A chain of convolutions beside a skip, of which those in the middle are dense; one has a loud channel."""
    net = Net()
    net.input("image", "batch", 3, SIDE, SIDE)
    x = net.op("Relu", net.op("Conv", "image", net.random(16, 3, 3, 3), net.random(16), pads=[1, 1, 1, 1]))
    kernel = np.random.default_rng(5).normal(0, 0.1, (2, 16, 16, 3, 3)).astype(np.float32)
    kernel[0, 3] *= 20
    for index in range(2):
        x = net.op("Conv", x, net.const(kernel[index], name=f"body.{index}.weight"), net.random(16), pads=[1, 1, 1, 1])
        x = net.op("Relu", x) if index == 0 else net.op("Mul", x, net.const(np.float32(0.5)))
    small = net.op("Mul", net.op("Conv", x, net.random(3, 16, 1, 1)), net.const(np.float32(1e-3)))
    net.output(net.op("Add", "image", small, name="restored"))
    spec = ModelSpec(name="chain", size=SizeRequirements(1, 8, SIDE), tile_px=SIDE, halo_px=8, dft_form="none")
    path = tmp_path / "chain.onnx"
    onnx.save(AttachMetadata(spec).apply(net.model()).model, str(path))
    return open_source(path)


@pytest.fixture
def rounded(source: Source) -> onnx.ModelProto:
    """Its graph with the two layers in the middle in integers."""
    model = host_form(source, Litert().form(source))
    del model.metadata_props[:]
    drawn = Integers(source, SIDE, FEW)
    return drawn.quantizer(Litert().rewrite(model)).build()


class OwnIntegers(Own):
    """Its INT8 is the quantiser's graph."""

    integers: ClassVar[tuple[tuple[str, str], ...]] = (("model_int8.own", "model.own"),)
    no_int8: ClassVar[str] = ""
    spoil: ClassVar[float] = 1.0

    def convert_int8(self, graph: IntegerGraph, folder: Path) -> None:
        for tensor in graph.model.graph.initializer:
            if tensor.name in graph.steps:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(self.spoil * onnx.numpy_helper.to_array(tensor), tensor.name)
                )
        onnx.save(graph.model, str(folder / "model_int8.own"))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[OwnIntegers]:
    class Mine(OwnIntegers):
        pass

    monkeypatch.setitem(TARGETS, "own", Mine)
    return Mine


def test_weights_are_multiples_of_their_steps(rounded: onnx.ModelProto) -> None:
    graph = read_integers(rounded)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.model.graph.initializer}
    assert len(graph.steps) == 2
    for name, step in graph.steps.items():
        assert step.shape == (16,)
        times = weights[name] / step.reshape(-1, 1, 1, 1)
        assert np.abs(times - np.rint(times)).max() < 1e-3
        assert 60 <= np.abs(times).max() <= 64  # seven bits
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), dtype=np.float32)
    before, after = (
        Probe(model, threads=1, optimise=False).run({"input": image})["output"] for model in (rounded, graph.model)
    )
    assert np.abs(before - after).max() <= 1e-5
    assert not [n for n in graph.model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights]


def test_a_runtime_that_rounds_inside_its_layers_is_told_how_large_their_inputs_are(rounded: onnx.ModelProto) -> None:
    graph = read_integers(rounded)
    model, peaks = without_rounding(graph)
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert set(peaks) == set(graph.steps)
    inputs = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), dtype=np.float32)
    values = Probe(model, [inputs[name] for name in peaks], threads=1).run({"input": image})
    for name, peak in peaks.items():
        assert 0.3 < np.abs(values[inputs[name]]).max() / peak < 3


def test_what_rounding_cuts_off_stays_cut_off() -> None:
    """The quantiser leaves a ReLU out where the step behind it begins at 0."""
    net = Net()
    net.input("input", 1, 2, 8, 8)
    step, zero = net.const(np.float32(1 / 64)), net.const(0, dtype=np.uint8)
    read = net.op("DequantizeLinear", net.op("QuantizeLinear", "input", step, zero), step, zero)
    weight = net.const(np.ones((2, 2, 1, 1)), name="weight")
    net.output(net.op("Conv", read, weight, name="output"))
    model, peaks = without_rounding(IntegerGraph(net.model(), {"weight": np.ones(2, np.float32)}))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 2, 8, 8)).astype(np.float32)
    before, after = (Probe(graph, threads=1).run({"input": image})["output"] for graph in (net.model(), model))
    assert np.abs(before - after).max() <= 1 / 64
    assert peaks == {"weight": 255 / 64}


def test_what_int8_loses_is_measured_and_said(own: type[OwnIntegers], source: Source, tmp_path: Path) -> None:
    (made,) = export_targets(source, tmp_path / "out", [own()], int8=FEW)
    assert "model_int8.own" in made.files
    (told,) = [found.note for found in made.findings if found.case == "int8"]
    assert told.startswith("loses ")
    assert "degraded photos" in told
    assert [found.case for found in made.findings if found.agreement and "int8" in found.case] == [
        "light, int8", "noise, int8"
    ]  # fmt: skip
    file = tmp_path / "out" / "own" / "model_int8.own"
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(100 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, str(file))
    (tmp_path / "out" / "own" / "target.json").unlink()
    selftest.write_record(tmp_path / "out" / "own", "own", ("input", "output"))
    with pytest.raises(ValidationError, match="own, int8"):
        selftest.verify_target("own", tmp_path / "out")


def test_int8_that_loses_too_much_is_not_written(own: type[OwnIntegers], source: Source, tmp_path: Path) -> None:
    own.spoil = 30.0
    with pytest.raises(BudgetError, match=r"--target own: INT8 loses .* dB in the mean.*allowed are 0\.15 and 0\.4 dB"):
        export_targets(source, tmp_path / "out", [own()], int8=FEW)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_what_the_routers_see_stays_in_float_where_all_in_integers_lose_too_much(
    own: type[OwnIntegers],
    source: Source,
    rounded: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = host_form(source, own().form(source))
    own().convert(model, tmp_path)
    spoilt = onnx.ModelProto.FromString(rounded.SerializeToString())
    for tensor in spoilt.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(-values if values.size > 1 else values, tensor.name))
    tried = iter([("", spoilt), ("a part stays in float32", rounded)])
    drawn = Integers(source, SIDE, FEW)
    monkeypatch.setattr(drawn, "quantizer", lambda _: None)
    monkeypatch.setattr(drawn, "variants", lambda _: tried)
    bar = 0.02  # the turned weights lose 0.1 on some photo, the others 0.003
    told = own().add_int8(model, tmp_path, drawn, (bar, bar))
    assert told.endswith("; a part stays in float32")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--target", "ffmpeg", "--precision", "int8"], 4, "--target ffmpeg: there is no INT8 for it: "),
        (["--target", "ffmpeg", "--precision", "fp16"], 2, "--precision fp16 does nothing with --target"),
        (["--target", "ffmpeg", "--seed", "3"], 2, "--seed does nothing with --target"),
    ],
)
def test_what_does_nothing_is_refused(
    source: Source, tmp_path: Path, arguments: list[str], code: int, why: str
) -> None:
    file = next(tmp_path.glob("*.onnx"))
    done = CliRunner().invoke(main, ["--onnx", str(tmp_path / "out"), "--from", str(file), *arguments])
    assert (done.exit_code, why in done.output) == (code, True), done.output
    assert not (tmp_path / "out").exists()


def test_a_program_without_int8_is_refused(own: type[OwnIntegers], source: Source, tmp_path: Path) -> None:
    own.no_int8 = "its reason"
    with pytest.raises(UnsupportedModelError, match="--target own: there is no INT8 for it: its reason"):
        export_targets(source, tmp_path / "out", [own()], int8=FEW)


WITH_INT8 = [Litert, Ncnn]


@pytest.mark.parametrize("host", WITH_INT8, ids=lambda host: host.name)
def test_the_runtime_computes_in_integers(host: type[Converted], source: Source, tmp_path: Path) -> None:
    if not os.environ.get(host.variable):
        skip(host.name)
    (made,) = export_targets(source, tmp_path, [host()], int8=FEW)
    assert [found.note.startswith("loses ") for found in made.findings if found.case == "int8"] == [True]
    folder = tmp_path / host.name
    image = np.random.default_rng(4).random((1, 3, SIDE, SIDE), dtype=np.float32)
    whole, few = (host().answers(folder, [image], integers=integers)[0] for integers in (False, True))
    change = np.abs(whole - image).max()
    assert 0 < np.abs(whole - few).max() < 0.2 * change
    biggest = max(host.integers, key=lambda pair: (folder / pair[0]).stat().st_size)
    assert (folder / biggest[0]).stat().st_size < 0.7 * (folder / biggest[1]).stat().st_size


_DELEGATED = """
import sys
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
types = {tensor["index"]: tensor["dtype"].__name__ for tensor in interpreter.get_tensor_details()}
for operator in interpreter._get_ops_details():
    if operator["op_name"] == "DELEGATE":
        print("weights", sum(types.get(index) == "int8" for index in operator["inputs"]))
"""


def test_xnnpack_is_given_the_layers_in_integers(source: Source, tmp_path: Path) -> None:
    python = os.environ.get(Litert.variable)
    if not python:
        skip("litert")
    export_targets(source, tmp_path, [Litert()], int8=FEW)
    command = [python, "-c", _DELEGATED, str(tmp_path / "litert" / "model_int8.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["weights", "2"]  # one delegate has both layers
