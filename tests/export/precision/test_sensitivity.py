import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from clusir.errors import ExportError
from clusir.export.precision.advice import Timing, advise, time_variants
from clusir.export.precision.evaluate import Evaluator
from clusir.export.precision.frontier import BudgetConfig, search_budget
from clusir.export.precision.frontier_plot import frontier_svg
from clusir.export.precision.loss import Quality, QualityLoss, compare_quality
from clusir.export.precision.run import PrecisionConfig, PrecisionReport, _over_budget
from clusir.export.precision.sensitivity import Deadline, Journal, measure_sensitivity
from clusir.export.quantize.data import draw_evaluation
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

COST = {"encoder.0.block.project": 0.5, "encoder.1.experts.experts.0.enter": 0.2, "encoder.1.block.expand": 0.01}


def pretend(model: ModelProto) -> QualityLoss:
    """Each integer layer costs what COST says on noise, a tenth of it on haze."""
    names = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4}
    total = sum(cost for layer, cost in COST.items() if f"{layer}.weight_quantized" in names)
    return QualityLoss({"noise": total, "haze": total / 10}, 50.0, 0.0)


def never_measured() -> QualityLoss:
    raise AssertionError("this is in the journal")


@pytest.fixture(scope="module")
def quantizer(routed: Any) -> Quantizer:
    return Quantizer(routed.whole, routed.calibration(), QuantizeConfig().without("Compact"))


def test_each_layer_alone_is_ranked_by_its_worst_loss(quantizer: Quantizer) -> None:
    found = measure_sensitivity(quantizer, pretend, Journal(None, ()), by_block=False)
    assert [entry.name for entry in found[:3]] == [f"{name}.weight" for name in COST]
    assert [round(entry.loss.worst_db, 6) for entry in found[:3]] == list(COST.values())
    assert len(found) == len(quantizer.candidates)
    blocks = measure_sensitivity(quantizer, pretend, Journal(None, ()))
    assert blocks[0].name == "encoder.0.block"
    assert blocks[0].layers == ("encoder.0.block.expand.weight", "encoder.0.block.project.weight")


def test_the_budget_puts_the_dearest_layers_back_first(quantizer: Quantizer) -> None:
    frontier = search_budget(quantizer, pretend, BudgetConfig(max_drop_db=0.1))
    assert frontier.met
    assert set(frontier.best.float_layers) == {
        "encoder.0.block.project.weight",
        "encoder.1.experts.experts.0.enter.weight",
    }
    assert frontier.best.loss.worst_db == pytest.approx(0.01)
    assert frontier.points[0].loss.worst_db == pytest.approx(0.71)
    shares = [p.int8_share for p in frontier.points]
    assert shares == sorted(shares, reverse=True)
    assert frontier.best.bytes > frontier.points[0].bytes
    text = frontier.to_markdown()
    assert "| all INT8 | 0 | 100 % | 0.390 | 0.710 | noise |" in text
    assert "`encoder.0.block.project.weight` | 0.5000 | noise" in text
    json.dumps(frontier.to_json())


def test_a_budget_that_holds_at_once_measures_nothing_more(quantizer: Quantizer) -> None:
    calls: list[int] = []

    def measure(model: ModelProto) -> QualityLoss:
        calls.append(1)
        return pretend(model)

    assert search_budget(quantizer, measure, BudgetConfig(max_drop_db=1.0)).chosen == 0
    assert len(calls) == 1


def test_a_budget_out_of_reach_keeps_the_best(quantizer: Quantizer) -> None:
    def always(model: ModelProto) -> QualityLoss:
        loss = pretend(model)
        return QualityLoss({kind: value + 1 for kind, value in loss.drop_db.items()}, 40.0, 0.0)

    frontier = search_budget(quantizer, always, BudgetConfig(max_drop_db=0.1, min_int8_share=0.4))
    assert not frontier.met
    assert "40 %" in frontier.stopped
    assert frontier.best.loss.worst_db == min(p.loss.worst_db for p in frontier.points) < 1.7


def test_the_time_limit_stops_and_the_journal_goes_on(quantizer: Quantizer, tmp_path: Path) -> None:
    path = tmp_path / "not yet there" / "journal.jsonl"
    first = search_budget(quantizer, pretend, BudgetConfig(max_drop_db=0.1, time_limit_s=0.0), Journal(path, ("x",)))
    assert not first.met
    search_budget(quantizer, pretend, BudgetConfig(max_drop_db=0.1), Journal(path, ("x",)))
    path.write_text(path.read_text() + '{"key": "half a li')

    def never(model: ModelProto) -> QualityLoss:
        raise AssertionError("everything is in the journal")

    torn = Journal(path, ("x",))
    torn.measure(["new"], lambda: pretend(onnx.ModelProto()))
    assert Journal(path, ("x",)).measure(["new"], never_measured) == pretend(onnx.ModelProto())
    journal = Journal(path, ("x",))
    again = search_budget(quantizer, never, BudgetConfig(max_drop_db=0.1), journal)
    assert again.met
    assert journal.hits > 5
    with pytest.raises(AssertionError, match="journal"):
        search_budget(quantizer, never, BudgetConfig(max_drop_db=0.1), Journal(path, ("another model",)))


def test_a_layer_that_is_too_large_is_passed_over_and_a_smaller_one_still_tried(routed: Any) -> None:
    """What costs most holds most of the arithmetic; a smaller layer alone would do."""
    quantizer = Quantizer(routed.whole, routed.calibration(), QuantizeConfig().without("Compact"))
    first = quantizer.candidates[0].name
    quantizer.layers = [replace(x, macs=x.macs * (9 if x.name == first else 1)) for x in quantizer.layers]
    largest = quantizer.candidates[0]
    small = next(layer for layer in quantizer.candidates if layer.block != largest.block)
    share = 1 - 0.9 * largest.macs / sum(layer.macs for layer in quantizer.candidates)

    def measure(model: ModelProto) -> QualityLoss:
        names = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4}
        has_largest, has_small = (f"{layer.name}_quantized" in names for layer in (largest, small))
        if len(names) <= len(quantizer.candidates) // 4:  # a block alone
            return QualityLoss({"noise": 5.0 * has_largest + 0.01 * has_small}, 50.0, 0.0)
        return QualityLoss({"noise": 9.0 * (has_largest and has_small)}, 50.0, 0.0)

    frontier = search_budget(quantizer, measure, BudgetConfig(max_drop_db=0.1, min_int8_share=share, refine=False))
    assert frontier.met, frontier.stopped
    assert largest.name not in frontier.best.float_layers


def test_a_graph_without_integer_layers_meets_no_budget(quantizer: Quantizer, routed: Any) -> None:
    empty = Quantizer(routed.whole, routed.calibration(), QuantizeConfig().without("Compact"))
    empty.layers = [replace(layer, keep="for the test") for layer in empty.layers]
    frontier = search_budget(empty, pretend, BudgetConfig(max_drop_db=1.0))
    assert not frontier.met
    report = PrecisionReport(frontier=frontier)
    told = str(_over_budget(frontier.best.loss, PrecisionConfig(("fp32", "int8")), report))
    assert told.startswith(f"No layer of this graph can be in INT8: for the test ({len(empty.layers)}).")
    assert told.endswith("Leave int8 out of --precision")


def test_the_mean_is_bounded_by_itself_and_the_best_point_is_kept(quantizer: Quantizer) -> None:
    assert BudgetConfig(mean_drop_db=0.4).holds(QualityLoss({"a": 0.0, "b": 0.7}, 50.0))
    assert not BudgetConfig(mean_drop_db=0.3).holds(QualityLoss({"a": 0.0, "b": 0.7}, 50.0))
    assert not BudgetConfig(mean_drop_db=0.3).holds(QualityLoss({"a": math.nan}, 50.0))
    calls = iter([1.0] + [0.5] * len(quantizer.candidates) + [0.7] + [2.0] * len(quantizer.candidates))
    losses = lambda model: QualityLoss({"noise": next(calls)}, 50.0)  # noqa: E731
    frontier = search_budget(quantizer, losses, BudgetConfig(max_drop_db=0.1, refine=False, min_int8_share=0.2))
    assert not frontier.met
    assert frontier.best.loss.worst_db == min(point.loss.worst_db for point in frontier.points)
    assert frontier.chosen < len(frontier.points) - 1


def test_deadlines() -> None:
    assert Deadline(0.0).passed
    assert not Deadline(None).passed
    assert not Deadline(1e9).passed
    with pytest.raises(ExportError, match="max_drop_db -1 is not a number of at least 0"):
        BudgetConfig(max_drop_db=-1)
    for share in (math.nan, -0.1, 1.5):
        with pytest.raises(ExportError, match="min_int8_share"):
            BudgetConfig(min_int8_share=share)
    with pytest.raises(ExportError, match="max_drop_db nan"):
        BudgetConfig(max_drop_db=math.nan)


def test_the_plot_is_a_picture_of_all_points(quantizer: Quantizer) -> None:
    frontier = search_budget(quantizer, pretend, BudgetConfig(max_drop_db=0.1))
    root = ElementTree.fromstring(frontier_svg(frontier, 0.1))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(frontier.points)
    heights = [float(c.attrib["cy"]) for c in circles]
    losses = [p.loss.worst_db for p in frontier.points]
    assert sorted(range(len(losses)), key=lambda i: losses[i]) == sorted(range(len(heights)), key=lambda i: -heights[i])


def test_evaluation_crops_have_truth_and_are_not_calibration_crops(routed: Any) -> None:
    samples = draw_evaluation(routed.source, 2, routed.draw.indices)
    assert not {s.index for s in samples} & set(routed.draw.indices)
    assert {s.degradation for s in samples} == set(routed.source.degradations) - {"clean"}
    loss = Evaluator(routed.reference, samples, routed.whole).loss(onnx.load(routed.whole))
    assert (loss.mean_db, loss.worst_db, loss.flips) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="has no truth"):
        Evaluator(routed.reference, [replace(samples[0], clean=None)], routed.whole)


def test_quality_loss_counts_flips_and_infinities() -> None:
    import numpy as np

    picture = np.zeros((2, 2, 3), np.float32)
    a = Quality(("x", "y"), (40.0, 30.0), (picture, picture), ((0, 2), (1, 2)))
    b = Quality(("x", "y"), (39.5, float("nan")), (picture, picture), ((0, 2), (0, 2)))
    loss = compare_quality(a, b)
    assert loss.drop_db == {"x": 0.5, "y": math.inf}
    assert loss.flips == 0.5
    assert loss.worst == "y"
    assert QualityLoss.from_json(loss.to_json()) == loss


def test_advice_names_the_gain_or_says_there_is_none() -> None:
    timings = [
        Timing("openvino", "fp32", 10.0, 10, 5),
        Timing("openvino", "int8", 4.0, 4, 5),
        Timing("openvino", "fp16", 2.0, 2, 5),
        Timing("ort", "fp32", 10.0, 10, 5),
        Timing("ort", "int8", 9.8, 9, 5),
    ]
    loss = QualityLoss({"noise": 0.05, "haze": 0.1}, 50.0)
    losses = {("openvino", "int8"): loss, ("ort", "int8"): loss}
    openvino, ort = advise(timings, losses)
    assert (openvino.variant, openvino.speedup) == ("int8", 2.5), "fp16 was not measured for quality"
    assert openvino.sentence == "INT8 on OpenVINO: 2.50x faster, PSNR -0.08 dB on average, -0.10 dB on haze"
    assert ort.sentence == "ONNX Runtime on this machine: no gain (INT8 1.02x), use fp32"


def test_variants_are_timed_in_turn_and_failures_are_told(routed: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(routed.whole.read_bytes()[:500])
    feeds = routed.calibration().feeds[0]
    variants = {"fp32": routed.whole, "int8": tmp_path / "broken.onnx"}
    timings, problems = time_variants(variants, dict.fromkeys(variants, feeds), ["ort"], runs=3, warm_up=1)
    assert [(t.backend, t.variant, t.runs) for t in timings] == [("ort", "fp32", 3)]
    assert timings[0].median_ms >= timings[0].best_ms > 0
    assert len(problems) == 1
    assert "int8 does not run on ONNX Runtime" in problems[0]


def test_another_version_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, ("x",)).measure(["a"], lambda: pretend(onnx.ModelProto()))
    Journal(path, ("x",)).measure(["a"], never_measured)
    for module in ("clusir", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setattr(f"{module}.__version__", "0.0.0")
            with pytest.raises(AssertionError, match="in the journal"):
                Journal(path, ("x",)).measure(["a"], never_measured)
