"""The whole graph is not measured again on crops on which the tile graph was, and which give the same maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clusir.export.precision.run import PrecisionConfig, make_precisions
from clusir.export.quantize import choice
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.steps import Quantizer


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of maps of every graph that calibration crops are run through."""
    found: list[int] = []
    record = choice.record

    def noted(graph: Any, tensors: Any, *more: Any) -> Any:
        found.append(len(tensors))
        return record(graph, tensors, *more)

    monkeypatch.setattr(choice, "record", noted)
    return found


def test_the_whole_graph_takes_what_the_tile_graph_was_measured_on(routed: Any, measured: list[int]) -> None:
    tile = Quantizer(routed.tile, routed.calibration(routed.tile))
    whole = Quantizer(routed.whole, routed.calibration(), sibling=tile)
    assert len(measured) == 1
    alone = Quantizer(routed.whole, routed.calibration())
    assert len(measured) == 2
    found, expected = whole.ranges, alone.ranges
    assert found.keys() == expected.keys()
    assert len(found) > 5
    for name, mine in found.items():
        size = expected[name].high - expected[name].low
        assert abs(mine.low - expected[name].low) + abs(mine.high - expected[name].high) <= 0.05 * size
        np.testing.assert_allclose(mine.mean, expected[name].mean, atol=1e-4 * size)
    one, other = whole.prepare().statistics, alone.prepare().statistics
    assert one.moments.keys() == other.moments.keys()
    for name, moment in one.moments.items():
        np.testing.assert_allclose(moment, other.moments[name], atol=1e-4 * np.abs(other.moments[name]).max())


def _spoilt(path: Path, out: Path) -> Path:
    """The graph with weights of its first layer that are larger by a hundredth."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "stem.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, out)
    return out


def _other_gates(given: Calibration) -> Calibration:
    return replace(given, gates=1 - given.gates)


def _other_keys(given: Calibration) -> Calibration:
    return replace(given, keys=[f"{key}, later" for key in given.keys])


@pytest.mark.parametrize("change", [_other_gates, _other_keys])
def test_other_crops_are_measured(change: Any, routed: Any, measured: list[int]) -> None:
    tile = Quantizer(routed.tile, routed.calibration(routed.tile))
    Quantizer(routed.whole, change(routed.calibration()), sibling=tile)
    assert len(measured) == 2


def test_maps_that_differ_are_measured(routed: Any, measured: list[int], tmp_path: Path) -> None:
    tile = Quantizer(routed.tile, routed.calibration(routed.tile))
    Quantizer(_spoilt(routed.whole, tmp_path / "model.onnx"), routed.calibration(), sibling=tile)
    assert len(measured) == 2


@pytest.mark.parametrize("what", ["map", "moment"])
def test_what_was_not_measured_there_is_measured(what: str, routed: Any, measured: list[int]) -> None:
    tile = Quantizer(routed.tile, routed.calibration(routed.tile))
    known, name = tile._measured.statistics, "encoder.1.experts.experts.0.leave.weight"
    node = next(n for n in tile._measured.graph.convolutions() if n.input[1] == name)
    assert name in known.moments
    assert node.input[0] in known.watched
    if what == "map":
        lacking = replace(known, watched=known.watched - {node.input[0]})
    else:
        lacking = replace(known, moments={key: known.moments[key] for key in known.moments if key != name})
    tile._measured = replace(tile._measured, statistics=lacking)
    Quantizer(routed.whole, routed.calibration(), sibling=tile)
    assert len(measured) == 2


def test_an_export_measures_once(routed: Any, measured: list[int], tmp_path: Path) -> None:
    for path in (routed.whole, routed.tile):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = PrecisionConfig(
        ("fp32", "int8"), calibration=routed.photos, evaluation_crops=1, timing_runs=1, backends=("ort",)
    )
    made = make_precisions(tmp_path, "model", config)
    assert set(made.files) == {("int8", "tile"), ("int8", "whole")}
    assert len(measured) == 1
