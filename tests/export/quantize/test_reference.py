"""The float32 graph is asked once for what it decides about a picture, by everything that needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from clusir.export.precision.evaluate import Evaluator
from clusir.export.quantize.data import Reference, draw_calibration, draw_evaluation, make_feeds


@pytest.fixture
def counted(routed: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Reference, list[bytes]]:
    """A reference that has seen no picture, and every picture that its graph is run on."""
    reference, runs = Reference(routed.whole), []
    run = reference.probe.run

    def noted(feeds: Any) -> Any:
        runs.append(feeds["image"].tobytes())
        return run(feeds)

    monkeypatch.setattr(reference.probe, "run", noted)
    return reference, runs


def test_crops_that_were_drawn_are_not_routed_again(routed: Any, counted: tuple[Reference, list[bytes]]) -> None:
    reference, runs = counted
    draw, _ = draw_calibration(routed.source, reference)
    assert len(runs) == len(set(runs)) >= len(draw.samples) > 0
    before = len(runs)
    feeds = make_feeds(routed.tile, draw.samples, reference)
    assert len(runs) == before
    for sample, fed in zip(draw.samples, feeds, strict=True):
        decided = reference.run(sample.image)
        assert set(fed) == {"image", "posterior", "gate"}
        assert all(np.array_equal(fed[name], decided[name]) for name in ("posterior", "gate"))
    assert not np.array_equal(feeds[0]["gate"], feeds[-1]["gate"]) or len({f["gate"].tobytes() for f in feeds}) > 1


def test_each_evaluation_crop_runs_once_for_both_graphs(routed: Any, counted: tuple[Reference, list[bytes]]) -> None:
    reference, runs = counted
    samples = draw_evaluation(routed.source, 1)
    tile = Evaluator(reference, samples, routed.tile)
    whole = tile.of(routed.whole)
    assert len(runs) == len(samples)
    assert whole.base.active  # of the whole graph, although the tile is held against itself
    assert tile.loss(onnx.load(routed.tile)).drop_db == dict.fromkeys(tile.base.degradations, 0.0)
    assert len(runs) == len(samples)
    assert [set(feeds) for feeds in whole.feeds] == [{"image"}] * len(samples)
    assert [set(feeds) for feeds in tile.feeds] == [{"image", "posterior", "gate"}] * len(samples)
    assert whole.loss_of_file(routed.whole, "ort").worst_db == pytest.approx(0, abs=1e-4)


def test_a_picture_that_differs_in_one_number_is_another(counted: tuple[Reference, list[bytes]]) -> None:
    reference, runs = counted
    picture = np.full((1, 3, 32, 32), 0.5, np.float32)
    other = picture.copy()
    other[0, 1, 2, 3] += np.float32(2**-20)
    for image in (picture, other, picture.copy(), other):
        reference.routing(image)
    assert len(runs) == 2
