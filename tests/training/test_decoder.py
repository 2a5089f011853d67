"""The last fit of the decoder, with the filter behind it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.training.judge.decoder import Drawn, calibrate_decoder, fit_decoder
from clusir.training.judge.pilot import OVER_FILTER, bounded, unbounded

SHIPPED = Path(str(files("clusir.weights"))) / "tiny.safetensors"


def noisy(seed: int, count: int = 2) -> Drawn:
    """Waves with noise, which a network that was trained on photos has not seen."""
    generator = torch.Generator().manual_seed(seed)
    pace, phase = torch.rand(2, count, 1, 1, 1, generator=generator)
    wave = 0.5 + 0.25 * torch.sin(torch.arange(64) * (0.2 + 0.6 * pace) + 6 * phase).expand(count, 3, 64, 64)
    degraded = (wave + 0.1 * torch.randn(count, 3, 64, 64, generator=generator)).clamp(0, 1)
    return Drawn(degraded, torch.tensor([[1.0, 0, 0, 0, 0, 0]]).repeat(count, 1), wave)


def batches() -> Iterator[Drawn]:
    seed = 100
    while True:
        yield noisy(seed)
        seed += 1


def error_db(model: ClusIR, drawn: Drawn) -> torch.Tensor:
    with torch.no_grad():
        answer = model(drawn.degraded, None, None, drawn.asked).restored.clamp(0, 1)
    return 10 * torch.log10((answer - drawn.wanted).square().mean(dim=(1, 2, 3)))


def test_a_fit_lessens_the_error_and_leaves_what_stands_in_front_of_the_decoder() -> None:
    before = checkpoint.load(SHIPPED).eval()
    model, apart = deepcopy(before), noisy(1, 6)
    fit_decoder(model, batches(), steps=12)
    assert (error_db(before, apart) - error_db(model, apart)).mean() > 0.3
    changed = {
        name.split(".")[0]
        for (name, then), now in zip(before.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(then, now)
    }
    assert changed == {"decoder", "up", "refine", "head", "gains", "pilot"}
    for name in OVER_FILTER:
        assert not torch.equal(before.pilot.get_parameter(name), model.pilot.get_parameter(name)), name
    assert torch.equal(before.up[-1].body.weight, model.up[-1].body.weight)
    with torch.no_grad():
        then, now = (m(apart.degraded, None, None, apart.asked) for m in (before, model))
    for a, b in zip(
        (*then.posteriors, *then.gates, then.evidence), (*now.posteriors, *now.gates, now.evidence), strict=True
    ):
        assert torch.equal(a, b)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_numbers_of_the_filter_come_back_from_numbers_of_any_size() -> None:
    pilot = checkpoint.load(SHIPPED).pilot
    assert pilot is not None
    with torch.no_grad():
        for name, value in bounded(unbounded(pilot)).items():
            torch.testing.assert_close(value, pilot.get_parameter(name), rtol=0.02, atol=2e-3, msg=name)


def test_a_network_without_permissions_is_refused() -> None:
    with pytest.raises(ValueError, match="no filter behind its decoder"):
        calibrate_decoder(checkpoint.random_model(CONFIGS["tiny"]), [], [], {"noise": 1.0}, steps=1)
