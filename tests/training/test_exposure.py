"""The correction is learnt from moments, which hold the whole of the squared error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clusir.network import checkpoint
from clusir.network.exposure import CORRECTIONS, SEEN, ExposureHead, correct
from clusir.network.model import CONFIGS
from clusir.training.judge.exposure import calibrate_exposure, correction_error, fit_exposure, moments
from clusir.training.photos import PhotoSet


def test_moments_hold_the_squared_error_of_every_correction() -> None:
    generator = torch.Generator().manual_seed(0)
    restored, wanted = torch.rand(2, 2, 3, 16, 24, generator=generator)
    correction = torch.rand(1, CORRECTIONS, generator=generator) - 0.5
    error = (correct(restored, correction) - wanted).square().mean()
    found = correction_error(moments(restored, wanted)[None], correction)
    torch.testing.assert_close(found[0], error, atol=1e-6, rtol=1e-4)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusir.training.judge.exposure._STEPS", 400)


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head reads, and moments of pictures that came out too dark by a factor that the first number tells."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(count, SEEN, generator=generator)
    wanted = torch.rand(count, 3, 8, 8, generator=generator)
    too_dark = wanted / (1.5 + 0.3 * known[:, 0].tanh())[:, None, None, None]
    return known, torch.stack([moments(y[None], x[None]) for y, x in zip(too_dark, wanted, strict=True)])


def test_the_correction_follows_what_the_statistics_say() -> None:
    head = ExposureHead()
    torch.manual_seed(0)
    fit_exposure(head, *pictures(600, 0), torch.ones(600, 1))
    known, found = pictures(200, 1)
    with torch.no_grad():
        before = correction_error(found, torch.zeros(200, CORRECTIONS)).mean()
        after = correction_error(found, head.judge(known)).mean()
    assert after < 0.1 * before


def test_calibration_measures_the_correction_and_leaves_the_random_state(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    photos = PhotoSet(tmp_path, "train")
    model = checkpoint.random_model(replace(CONFIGS["tiny"], permissions=True))
    chosen, weights = [(photos, 0)] * 8, {"low_light": 1.0, "noise": 1.0}
    before = torch.random.get_rng_state()
    report = calibrate_exposure(model, chosen, chosen[:6], weights, crop_px=64)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 0 < report.pictures <= 6
    assert max(report.plain, report.corrected) < report.best
    with pytest.MonkeyPatch.context() as patched:  # the figure without a correction knows of no fit
        patched.setattr("clusir.training.judge.exposure.fit_exposure", lambda *_: None)
        unfitted = calibrate_exposure(model, chosen, chosen[:6], weights, crop_px=64)
    assert (unfitted.plain, unfitted.best) == (report.plain, report.best)
    assert unfitted.corrected == unfitted.plain != report.corrected
    model.evidence.floors.fill_(1.1)  # type: ignore[union-attr]
    assert calibrate_exposure(model, chosen[:2], chosen[:2], weights, crop_px=64).pictures == 0
    model.exposure = None
    with pytest.raises(ValueError, match="no exposure"):
        calibrate_exposure(model, chosen, chosen, weights)
