"""The share that is kept is learnt from what the best share would have been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clusir.network import checkpoint
from clusir.network.model import CONFIGS
from clusir.network.trust import RESIDUALS, TrustHead
from clusir.training.judge.trust import calibrate_trust, fit_trust
from clusir.training.photos import PhotoSet


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusir.training.judge.trust._STEPS", 500)


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head reads, and parabolas (a, b, c): where the last number is over 0 everything done is right, else
    nothing is."""
    known = torch.randn(count, RESIDUALS + 6, generator=torch.Generator().manual_seed(seed)) * 0.2 + 3
    good = (known[:, -1] > 3).float()
    done = torch.full((count,), 1e-3)
    return known, torch.stack([1e-5 + done * good, done * good, done], dim=1)


def test_the_share_follows_what_the_residual_says() -> None:
    head = TrustHead(6)
    torch.manual_seed(0)
    fit_trust(head, *drawn(2000, 0))
    known, error = drawn(500, 1)
    with torch.no_grad():
        share = torch.sigmoid(head.judge(known))[:, 0]
    good = error[:, 1] > 0
    assert share[good].mean() > 0.9
    assert share[~good].mean() < 0.1


def test_a_loss_counts_more_than_a_gain() -> None:
    """Where nothing tells right from wrong, the share is where what is lost, a third more, outweighs what is gained."""
    head = TrustHead(6)
    known = torch.zeros(1000, RESIDUALS + 6)
    good = (torch.arange(1000) % 2).float()
    done = torch.full((1000,), 0.05)
    torch.manual_seed(0)
    fit_trust(head, known, torch.stack([2 * done, done * good, done], dim=1))
    with torch.no_grad():
        share = float(torch.sigmoid(head.judge(known[:1])))
    # (1 - s) / (1 - s + s^2 / 2) = 1.3 s / (1 + s^2 / 2) at 0.62; with 1 instead of 1.3 at 0.69.
    assert share == pytest.approx(0.62, abs=0.03)


def test_calibration_measures_what_is_kept_and_leaves_the_random_state(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (220, 220, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    photos = PhotoSet(tmp_path, "train")
    model = checkpoint.random_model(replace(CONFIGS["tiny"], permissions=True))
    assert model.evidence is not None
    model.evidence.thresholds.fill_(0.0)
    chosen = [(photos, 0)] * 3
    before = torch.random.get_rng_state()
    report = calibrate_trust(model, chosen, chosen[:2], {"noise": 1.0}, crop_px=64)
    assert torch.equal(before, torch.random.get_rng_state())
    assert report.pictures == 2
    assert report.gain_kept > report.gain_all  # a random network spoils pictures: little of that is kept
    model.evidence.thresholds.fill_(1.1)
    assert calibrate_trust(model, chosen, chosen, {"noise": 1.0}, crop_px=64).pictures == 0
    model.trust = None
    with pytest.raises(ValueError, match="no trust"):
        calibrate_trust(model, chosen, chosen, {"noise": 1.0})
