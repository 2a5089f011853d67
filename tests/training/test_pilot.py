"""The fit of the Wiener filter behind the network."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from clusir.network import checkpoint
from clusir.network.model import CONFIGS
from clusir.network.pilot import PilotFilter
from clusir.training.judge.pilot import PilotPicture, calibrate_pilot, filter_gains, fit_pilot

NOISE = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])


def pictures(count: int, seed: int) -> Sequence[PilotPicture]:
    """Waves with noise, of which a network left a third and took a third of the waves."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        pace, phase, sigma = torch.rand(3, generator=generator).tolist()
        wave = 0.25 * torch.sin(torch.arange(64) * (0.4 + 1.5 * pace) + 6 * phase).expand(3, 64, 64)
        noise = (0.04 + 0.08 * sigma) * torch.randn(3, 64, 64, generator=generator)
        image = ((0.5 + wave + noise).clamp(0, 1) * 255).round()
        restored = 0.5 + wave * 0.67 + noise * 0.33
        away = image / 255 - restored
        taken = PilotFilter().taken(away[None], NOISE, torch.ones(1, 1))
        found.append(PilotPicture(image.byte(), away.half(), restored.half(), (0.5 + wave).half(), taken[0]))
    return found


def test_a_fit_lessens_the_error_of_pictures_that_it_has_not_seen() -> None:
    pilot, apart = PilotFilter(), pictures(6, 1)
    before, same = filter_gains(pilot, apart)
    torch.testing.assert_close(before, same)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fit_pilot(pilot, pictures(12, 0), steps=120, window_px=48)
    _, after = filter_gains(pilot, apart)
    assert (after - before).min() > 1.0
    assert not pilot.shrink[:, 0].any(), "a block's mean stays"
    for name in ("shrink", "give", "doubt", "own"):
        number = pilot.get_parameter(name)
        assert number.isfinite().all(), name
        assert number.min() >= 0, name
    assert pilot.give.max() <= 1
    assert pilot.own.max() <= 1


def test_a_network_without_permissions_has_no_filter() -> None:
    with pytest.raises(ValueError, match="no pilot filter"):
        calibrate_pilot(checkpoint.random_model(CONFIGS["tiny"]), [], [], {"noise": 1.0})
