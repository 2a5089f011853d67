"""What a precision costs, and which is recommended: NaN and infinities are losses; options act or are refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clusir.calibration.base import Sample
from clusir.errors import BudgetError, UsageError
from clusir.export.precision.advice import Timing, advise
from clusir.export.precision.frontier import BudgetConfig
from clusir.export.precision.loss import Quality, QualityLoss, compare_quality, measure_quality
from clusir.export.precision.record import undamaged, undamaged_loss
from clusir.export.quantize import float16
from clusir.export.quantize.choice import AddResiduals
from clusir.export.quantize.float16 import convert_fp16
from clusir.export.quantize.integers import ClipRanges, ToIntegers
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "c"])))
def test_a_loss_that_is_no_number_is_the_worst_in_any_order(order: tuple[str, ...]) -> None:
    drops = {"a": NAN, "b": 0.01, "c": 0.02}
    loss = QualityLoss({kind: drops[kind] for kind in order}, 40.0)
    assert (loss.worst, loss.worst_db, loss.mean_db) == ("a", INF, INF)
    assert not BudgetConfig(max_drop_db=0.1).holds(loss)
    assert not BudgetConfig(mean_drop_db=0.1).holds(loss)
    fine = QualityLoss({"b": 0.01, "c": 0.02}, 40.0)
    assert (fine.worst, fine.worst_db) == ("c", 0.02)
    assert BudgetConfig(max_drop_db=0.02, mean_drop_db=0.015).holds(fine)
    assert not BudgetConfig(max_drop_db=0.019).holds(fine)


def loss_of(spoil: Any) -> QualityLoss:
    """The loss of a restored picture of a white wall, 0.1 too dark, that ``spoil`` changes."""
    wall = np.ones((1, 3, 4, 4), np.float32)
    sample = Sample(0, "x", "noise", wall * np.float32(0.5), wall)
    base, other = (measure_quality(lambda _, r=r: (r, None), [sample]) for r in (wall * np.float32(0.9), spoil(wall)))
    return compare_quality(base, other)


def one_pixel(value: float) -> Any:
    def spoil(wall: np.ndarray) -> np.ndarray:
        restored = wall * np.float32(0.9)
        restored[0, 1, 2, 3] = value
        return restored

    return spoil


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_a_picture_that_is_not_finite_loses_infinitely_much(value: float) -> None:
    for spoil in (one_pixel(value), lambda wall: np.full_like(wall, value)):
        loss = loss_of(spoil)
        assert loss.drop_db == {"noise": INF}
        assert loss.agreement_db == -INF
        assert not BudgetConfig(max_drop_db=100.0).holds(loss)


def test_finite_losses_are_differences_of_psnr() -> None:
    assert loss_of(lambda wall: wall * np.float32(0.9)).drop_db["noise"] == 0.0
    assert loss_of(lambda wall: wall * np.float32(0.8)).drop_db["noise"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert loss_of(lambda wall: wall * np.float32(0.95)).drop_db["noise"] == pytest.approx(-6.02, abs=0.01)
    assert loss_of(lambda wall: wall).drop_db["noise"] == 0.0  # perfect
    assert loss_of(lambda wall: wall * 2).drop_db["noise"] == 0.0  # clipped, as it is shown


def timings(**ms: float) -> list[Timing]:
    return [Timing("ort", variant, value, value, 3) for variant, value in ms.items()]


def losses(**drop: float) -> dict[tuple[str, str], QualityLoss]:
    return {("ort", variant): QualityLoss({"noise": 0.0, "haze": value}, 40.0) for variant, value in drop.items()}


@pytest.mark.parametrize("lost", [INF, NAN, 5.0, 1.01])
def test_a_variant_that_spoils_the_picture_is_not_recommended(lost: float) -> None:
    found = advise(timings(fp32=10, int8=5), losses(int8=lost))[0]
    assert (found.variant, found.speedup) == ("fp32", 1.0)
    assert "use fp32" in found.sentence
    assert "INT8 2.00x at the cost of" in found.sentence
    best = advise(timings(fp32=10, int8=5, fp16=8), losses(int8=lost, fp16=0.001))[0]
    assert (best.variant, best.speedup) == ("fp16", 1.25)


def test_the_fastest_that_keeps_the_picture_is_recommended() -> None:
    found = advise(timings(fp32=10, int8=5, fp16=8), losses(int8=0.1, fp16=0.0))[0]
    assert (found.variant, found.speedup) == ("int8", 2.0)
    assert "2.00x faster" in found.sentence
    assert advise(timings(fp32=10, int8=9.5), losses(int8=0.0))[0].variant == "fp32"
    assert advise(timings(fp32=10, int8=5), {})[0].variant == "fp32"  # nothing was measured


def test_float16_that_disagrees_is_not_written(routed: Any, tmp_path: Path) -> None:
    feeds = routed.calibration().feeds[:1]
    for reached in (40.0, NAN, -INF):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(float16, "_agreement", lambda *_, reached=reached: reached)
            with pytest.raises(BudgetError, match="nothing is written"):
                convert_fp16(routed.whole, tmp_path / "half.onnx", feeds)
    assert list(tmp_path.iterdir()) == []
    agreement = convert_fp16(routed.whole, tmp_path / "half.onnx", feeds).agreement_db
    assert agreement is not None
    assert 60 < agreement < math.inf


def test_what_is_recorded_of_the_quantiser_is_what_acts(routed: Any) -> None:
    steps = [step for step in QuantizeConfig().steps if step.name not in ("ScaleOutputs", "RoundLeastSquares")]
    at = [step.name for step in steps].index("Measure")
    config = QuantizeConfig((*steps[:at], AddResiduals(), *steps[at:]))
    quantizer = Quantizer(routed.whole, routed.calibration(), config)
    model = quantizer.build()
    notes = json.loads(next(p.value for p in model.metadata_props if p.key == "clusir.quantisation"))
    names = [step["step"] for step in notes["steps"]]
    assert "AddResiduals" in names
    assert not {"ScaleOutputs", "RoundLeastSquares"} & set(names)
    assert quantizer.report(model, {}).config["steps"] == notes["steps"]
    assert Quantizer(routed.whole, routed.calibration()).config == QuantizeConfig()


NOT_TAKEN = {
    "ClipRanges": QuantizeConfig().having(ClipRanges("minmax")),
    "a scale per output channel": QuantizeConfig().having(ToIntegers(weight_scale="tensor")),
    **{
        n: QuantizeConfig().without(n)
        for n in ("Compact", "RoundLeastSquares", "CorrectBiases", "ScaleOutputs", "ScaleInputs")
    },
}


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_nncf_refuses_what_it_does_not_take(routed: Any, tmp_path: Path, what: str) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    from clusir.export.precision.nncf import quantize_nncf

    with pytest.raises(UsageError, match=f"engine nncf .*{what}"):
        quantize_nncf(routed.whole, tmp_path / "x.onnx", routed.calibration(), NOT_TAKEN[what])


def test_nncf_records_what_acts_and_is_right_on_every_cpu(
    routed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    from clusir.export.precision import nncf

    checked: list[onnx.ModelProto] = []
    monkeypatch.setattr(nncf, "check_pair_sums", checked.append)
    out = tmp_path / "x.onnx"
    report = nncf.quantize_nncf(routed.whole, out, routed.calibration(), QuantizeConfig(manifest_sha256="7" * 64))
    names = [step["step"] for step in report.config["steps"]]
    assert names == ["KeepRouting", "KeepLittleArithmetic", "Measure", "Equalise", "ToIntegers"]
    assert report.config["manifest_sha256"] == "7" * 64
    properties = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(properties["clusir.quantisation"]) == {"engine": "nncf"} | report.config
    assert len(checked) == 1


def test_undamaged_photos_count_up_to_one_level_of_eight_bits() -> None:
    picture = np.full((8, 8, 3), 0.5, np.float32)

    def quality(*psnr_db: float) -> Quality:
        return Quality(("clean",) * len(psnr_db), psnr_db, (picture,) * len(psnr_db))

    class Known:
        base = quality(70.0, 50.0)

    def loss(*psnr_db: float) -> float:
        return undamaged_loss(Known(), quality(*psnr_db)).worst_db  # type: ignore[arg-type]

    assert loss(49.0, 48.0) == 0.0
    assert loss(47.0, 70.0) == pytest.approx(0.5)
    assert loss(NAN, 70.0) == INF
    assert loss(-INF, 70.0) == INF


def test_undamaged_photos_are_the_truths_of_the_others() -> None:
    def sample(number: int, size: int = 8) -> Sample:
        image = np.full((1, 3, 8, 8), number / 100, np.float32)
        return Sample(number, f"p{number}", "noise", image, np.full((1, 3, size, size), number / 50, np.float32))

    chosen = undamaged([sample(i) for i in range(40)])
    assert len(chosen) == 8
    assert {s.degradation for s in chosen} == {"clean"}
    assert all(s.image is s.clean for s in chosen)
    assert len({s.sha256 for s in chosen}) == 8
    assert undamaged([sample(0, 16)]) == []
