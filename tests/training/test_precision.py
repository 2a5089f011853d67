"""bfloat16 convolutions, and the choice of how steps compute."""

from __future__ import annotations

import itertools

import pytest
import torch

from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.training.precision import choose_arithmetic, half_convolutions


def test_half_precision_convolutions_are_close_keep_float32_and_go_away() -> None:
    model = checkpoint.random_model(CONFIGS["tiny"])
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        full = model(x).restored
        with half_convolutions(model):
            half = model(x).restored
        again = model(x).restored
    assert half.dtype == torch.float32
    assert 1e-7 < (half - full).abs().max() < 0.05
    assert torch.equal(again, full)


@pytest.mark.parametrize(
    ("seconds", "half", "chosen"),
    [
        ((4, 2, 3, 5), True, "float32 channels_last"),
        ((4, 5, 1, 3), True, "bfloat16"),
        ((3, 5), False, "float32"),
    ],
)
def test_the_fastest_arithmetic_is_chosen_by_trial_and_leaves_no_trace(
    seconds: tuple[int, ...], half: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = ClusIR(CONFIGS["tiny"]), torch.get_rng_state()
    # What the clock says: nothing passes between steps, and each step takes what the table says.
    ticks = itertools.accumulate(itertools.chain.from_iterable((0, s) for s in 2 * seconds))
    monkeypatch.setattr("clusir.training.precision.time.perf_counter", lambda: next(ticks))
    assert choose_arithmetic(model, 1, 32, half=half, rounds=2) == chosen
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
