import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from clusir.calibration.balance import BalanceConfig
from clusir.calibration.manifest import write_manifest
from clusir.errors import CalibrationError, ExportError
from clusir.export.graph.session import Probe
from clusir.export.precision.evaluate import Evaluator
from clusir.export.quantize.choice import AddResiduals
from clusir.export.quantize.data import calibrate, draw_calibration, draw_evaluation, make_feeds
from clusir.export.quantize.integers import ClipRanges, ToIntegers
from clusir.export.quantize.layers import load_graph, metadata_of
from clusir.export.quantize.ranges import Calibration, owners_of
from clusir.export.quantize.statistics import record
from clusir.export.quantize.steps import QuantizeConfig, Quantizer, quantize_int8
from clusir.spec import ModelSpec

PLAIN = QuantizeConfig().without("Compact")


def integer_weights(model: ModelProto) -> dict[str, np.ndarray]:
    return {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    }


def agreement_db(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
    return min(-10 * np.log10(np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True))


def test_int8_of_both_graphs_stays_close_and_says_what_it_is(routed: Any, tmp_path: Path) -> None:
    samples = draw_evaluation(routed.source, 1, routed.draw.indices)
    for graph in (routed.whole, routed.tile):
        out = tmp_path / graph.name
        report = quantize_int8(graph, out, routed.calibration(graph), QuantizeConfig(manifest_sha256="ab"))
        model = onnx.load(out)
        onnx.checker.check_model(model, full_check=True)
        spec = ModelSpec.from_metadata(metadata_of(model))
        assert (spec.precision, spec.graph, spec.experts) == ("int8", load_graph(graph).spec.graph, (2, 2))
        assert json.loads(metadata_of(model)["clusir.quantisation"])["manifest_sha256"] == "ab"
        assert all(
            v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in (*model.graph.input, *model.graph.output)
        )
        feeds = make_feeds(graph, samples, routed.reference)
        fp32, int8 = Probe(onnx.load(graph)), Probe(model)
        got = [int8.run(f) for f in feeds]
        assert agreement_db([fp32.run(f)["restored"] for f in feeds], [o["restored"] for o in got]) > 38
        if graph == routed.whole:
            for f, o in zip(feeds, got, strict=True):
                assert np.array_equal(o["gate"], fp32.run(f)["gate"])
        assert len(report.quantised) == 12
        assert out.with_name(out.name + ".part").exists() is False


def test_what_must_stay_float_does_and_the_report_says_why(routed: Any) -> None:
    quantizer = Quantizer(routed.whole, routed.calibration(), PLAIN)
    model = quantizer.build()
    kept = quantizer.report(model).kept
    assert kept == {
        "stem.weight": "first convolution",
        "encoder.0.chooser.describe.weight": "router",
        "encoder.1.chooser.describe.weight": "router",
        "head.weight": "last convolution",
    }
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert set(kept) <= floats
    last = next(n for n in model.graph.node if "restored" in n.output)
    assert "image" in last.input, "the global residual adds the picture itself"
    assert "| `head.weight` | last convolution |" in quantizer.report(model).to_markdown()


def test_a_router_known_by_its_place_alone(routed: Any) -> None:
    graph = load_graph(routed.whole)
    nodes = graph.router_nodes()
    assert "node_gate" in nodes
    assert not any(node.name in nodes for node in graph.convolutions() if "chooser" not in node.input[1])
    assert load_graph(routed.tile).router_nodes() == set()


@pytest.mark.parametrize(("reduce_range", "limit"), [(True, 64), (False, 127)])
def test_weights_use_seven_bits_unless_told_otherwise(routed: Any, reduce_range: bool, limit: int) -> None:
    config = PLAIN.having(ToIntegers(weight_bits=7 if reduce_range else 8))
    weights = integer_weights(Quantizer(routed.whole, routed.calibration(), config).build())
    assert len(weights) == 12
    for value in weights.values():
        # Per channel: every output channel reaches the end of its own range.
        assert np.all(np.abs(value.astype(int)).max(axis=(1, 2, 3)) >= limit - 1)
        assert np.abs(value.astype(int)).max() <= limit


def test_the_same_manifest_gives_bit_identical_files(routed: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "calibration.json"
    write_manifest(routed.manifest, manifest)
    quantize_int8(routed.whole, tmp_path / "a.onnx", routed.calibration())
    draw, again = draw_calibration(routed.source, routed.reference, BalanceConfig(size=3), manifest)
    assert again.sha256 == routed.manifest.sha256
    quantize_int8(routed.whole, tmp_path / "b.onnx", calibrate(routed.whole, draw, routed.reference))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    other, _ = draw_calibration(routed.source, routed.reference, BalanceConfig(size=4, pool=4))
    quantize_int8(routed.whole, tmp_path / "c.onnx", calibrate(routed.whole, other, routed.reference))
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()


def test_calibration_covers_every_expert_here(routed: Any) -> None:
    assert routed.draw.coverage.under_served == ()
    assert min(min(level) for level in routed.draw.coverage.experts) >= 4


def test_an_expert_that_saw_nothing_stays_in_float_visibly(routed: Any) -> None:
    broken = routed.calibration()
    gates = broken.gates.copy()
    gates[:, 3] = 0
    blind = Calibration(broken.feeds, broken.keys, gates, broken.experts)
    quantizer = Quantizer(routed.whole, blind, PLAIN, [(1, 1)])
    report = quantizer.report(quantizer.build())
    for part in ("enter", "leave"):
        assert report.kept[f"encoder.1.experts.experts.1.{part}.weight"] == (
            "expert 1 of level 2 is under-served by calibration"
        )
        assert f"encoder.1.experts.experts.0.{part}.weight" in report.quantised
    # Even where nobody said so, a tensor without a range cannot be quantised.
    unsaid = Quantizer(routed.whole, blind, PLAIN)
    assert unsaid.report(unsaid.build()).kept["encoder.1.experts.experts.1.leave.weight"] == (
        "its expert saw no calibration crop"
    )


def test_an_under_served_expert_that_cannot_be_told_apart_is_refused(routed: Any) -> None:
    with pytest.raises(CalibrationError, match=r"expert 0 of level 5 saw too few .* give more varied photos"):
        Quantizer(routed.whole, routed.calibration(), PLAIN, [(4, 0)])


def test_ranges_inside_an_expert_ignore_crops_of_others(routed: Any) -> None:
    graph = load_graph(routed.whole)
    layers = graph.layers()
    owners = owners_of(graph, layers)
    whole = routed.calibration()
    narrower = 0
    for layer in (entry for entry in layers if entry.expert is not None):
        level, expert = layer.expert or (0, 0)
        tensor = next(n for n in graph.convolutions() if n.name == layer.node).output[0]
        assert owners[tensor] == (level, expert)
        own = [i for i, gate in enumerate(whole.gates) if gate[2 * level + expert] != 0]
        mine = Calibration([whole.feeds[i] for i in own], [whole.keys[i] for i in own], whole.gates[own], whole.experts)
        found = ((whole, owners), (mine, {}), (whole, {}))
        gated, alone, everyone = (record(graph, [tensor], {}, c, o).maps[tensor].range("minmax") for c, o in found)
        assert (gated.low, gated.high) == (alone.low, alone.high)
        narrower += gated.high - gated.low < everyone.high - everyone.low
    assert narrower >= 2


def test_activations_that_are_not_finite_are_refused_by_name(routed: Any) -> None:
    model = onnx.load(routed.whole)
    for tensor in model.graph.initializer:
        if tensor.name == "encoder.0.block.expand.weight":
            value = numpy_helper.to_array(tensor).copy()
            value[0, 0, 0, 0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    with pytest.raises(CalibrationError, match=r"is not finite for calibration crop photo_.*clusir-verify"):
        Quantizer(model, routed.calibration())


def test_bias_correction_takes_the_mean_error_out(routed: Any) -> None:
    shifts = {}
    feeds = routed.calibration().feeds
    tensor = next(n.output[0] for n in load_graph(routed.whole).convolutions() if "0.block.project" in n.input[1])
    expected = [Probe(load_graph(routed.whole).model, [tensor], optimise=False).run(f)[tensor] for f in feeds]
    for corrected in (False, True):
        config = PLAIN.without("RoundLeastSquares", *(() if corrected else ("AddBiases", "CorrectBiases")))
        quantizer = Quantizer(routed.whole, routed.calibration(), config)
        others = [layer.name for layer in quantizer.candidates if layer.name != "encoder.0.block.project.weight"]
        probe = Probe(quantizer.build(others), optimise=False, watch=[tensor])
        found = [probe.run(f) for f in feeds]
        errors = np.concatenate([o[tensor] - e for o, e in zip(found, expected, strict=True)])
        shifts[corrected] = float(np.abs(errors.mean(axis=(0, 2, 3))).mean())
    assert shifts[True] < 0.6 * shifts[False]


def test_residual_sums_are_integers_only_where_asked(routed: Any) -> None:
    def sums_in_integers(config: QuantizeConfig) -> int:
        model = Quantizer(routed.whole, routed.calibration(), config).build()
        made_by = {name: node.op_type for node in model.graph.node for name in node.output}
        adds = [n for n in model.graph.node if n.op_type == "Add"]
        return sum(all(made_by.get(name) == "DequantizeLinear" for name in n.input) for n in adds)

    # Six sums of maps; where only convolutions are quantised, four of them read a product in float, and all six where
    # maps have a scale per channel.
    assert sums_in_integers(QuantizeConfig()) == 0
    unscaled = QuantizeConfig().without("ScaleOutputs", "ScaleInputs")
    assert sums_in_integers(unscaled) == 2
    steps = [step for step in QuantizeConfig().steps if step.name != "ScaleOutputs"]
    at = [step.name for step in steps].index("Measure")
    assert sums_in_integers(QuantizeConfig((*steps[:at], AddResiduals(), *steps[at:]))) == 6
    for wrong in ((*QuantizeConfig().steps, AddResiduals()), steps[:at], (*steps, steps[0])):
        with pytest.raises(ExportError, match=r"exclude each other|are needed|is there twice"):
            QuantizeConfig(tuple(wrong))


def test_compact_files_are_smaller_and_mean_the_same(routed: Any) -> None:
    plain = Quantizer(routed.whole, routed.calibration(), PLAIN).build()
    small = Quantizer(routed.whole, routed.calibration(), QuantizeConfig()).build()
    assert small.ByteSize() < 0.85 * plain.ByteSize()
    feeds = routed.calibration().feeds
    a, b = Probe(plain), Probe(small)
    # Not closer: a rounding that tips over is one of 255 steps, and this model's router is steep.
    assert agreement_db([a.run(f)["restored"] for f in feeds], [b.run(f)["restored"] for f in feeds]) > 40


def test_float_layers_are_left_alone(routed: Any) -> None:
    quantizer = Quantizer(routed.whole, routed.calibration(), PLAIN)
    everything = [layer.name for layer in quantizer.candidates]
    model = quantizer.build(everything)
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    one = quantizer.build(everything[1:])
    assert len(integer_weights(one)) == 1


@pytest.fixture(scope="module")
def wide(routed: Any) -> Quantizer:
    """What clips nothing."""
    return Quantizer(routed.whole, routed.calibration(), QuantizeConfig().having(ClipRanges("minmax")))


@pytest.mark.parametrize("clipping", ["percentile", "mse"])
def test_clipping_narrows_ranges_and_still_works(routed: Any, wide: Quantizer, clipping: str) -> None:
    narrow = Quantizer(routed.whole, routed.calibration(), QuantizeConfig().having(ClipRanges(clipping)))
    spans = [(r.high - r.low, narrow.ranges[n].high - narrow.ranges[n].low) for n, r in wide.ranges.items()]
    assert all(after <= before + 1e-6 for before, after in spans)
    assert any(after < 0.97 * before for before, after in spans)
    samples = draw_evaluation(routed.source, 1, routed.draw.indices)
    assert Evaluator(routed.reference, samples, routed.whole).loss(narrow.build()).agreement_db > 35


def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="clipping 'entropy' is not one of minmax, percentile, mse"):
        ClipRanges("entropy")
    with pytest.raises(ExportError, match="there is no step 'Compacted'; the steps are KeepRouting"):
        QuantizeConfig().without("Compacted")
    (tmp_path / "not.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="cannot be read as an ONNX model"):
        load_graph(tmp_path / "not.onnx")
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("x", 1, [1])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ExportError, match="--router dense"):
        load_graph(helper.make_model(helper.make_graph([node], "g", [], [])))
