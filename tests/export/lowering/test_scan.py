"""A linear recurrence in ONNX: against float64 from one step to 65,536, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clusir.export.lowering.scan import CHUNK, linear_scan
from tests.bench.scans.__main__ import on, recurrence
from tests.bench.scans.forms import exported


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_recurrence_is_right_at_every_length(backend: str) -> None:
    run, rng = on(backend, exported()), np.random.default_rng(0)
    for length in (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 1000, 65536):
        for decay in (rng.random((length, 3)), np.full((length, 3), 0.9999), np.full((length, 3), np.exp(-40.0))):
            decay[length // 2, 0], decay[length // 3, 1] = 0.0, -1.0  # a state that is forgotten, one that is turned
            both = np.stack([decay, rng.standard_normal((length, 3))]).astype(np.float32)
            want = recurrence(both)
            np.testing.assert_allclose(run(both), want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max()))


def test_it_can_be_differentiated() -> None:
    decay, entry = torch.rand(2, 5, 2, 3, dtype=torch.float64)
    given = [t.requires_grad_() for t in (decay, entry, torch.rand(2, 3, dtype=torch.float64))]
    assert torch.autograd.gradcheck(linear_scan, given)
