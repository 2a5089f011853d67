"""Steps as CUDA graphs: the dense form they need (anywhere), and equal gradients (where there is a card)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clusir.network.experts import SparseExperts
from clusir.network.model import CONFIGS, ClusIR
from clusir.network.router import ClusterRouter
from clusir.training.cuda_graph import GraphedForward
from clusir.training.loop import Stage, TrainConfig, train
from clusir.training.state import read_header
from tests import needs

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason=needs.NEEDS["cuda"])


@pytest.mark.parametrize("chosen", [1, 2])
def test_experts_that_run_everywhere_give_the_same_sum_and_gradients(chosen: int) -> None:
    torch.manual_seed(0)
    sparse = SparseExperts(8, (4, 4, 8), (3, 5, 3)).double()
    dense = copy.deepcopy(sparse)
    dense.everywhere = True
    gate = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.2, 0.0, 0.8]], dtype=torch.float64)
    if chosen == 1:
        gate = torch.where(gate > 0.5, gate, 0.0)
    u, shared = torch.randn(2, 3, 8, 6, 6, dtype=torch.float64)
    results = [experts(u, shared, gate) for experts in (sparse, dense)]
    torch.testing.assert_close(results[1], results[0])
    for result in results:
        torch.autograd.backward(result.square().sum())
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_sparse_experts_take_what_autocast_hands_them() -> None:
    sparse = SparseExperts(8, (4, 8), (3, 3))
    u, gate = torch.randn(2, 8, 6, 6), torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    expected = sparse(u, u, gate)
    with torch.autocast("cpu", torch.bfloat16):
        found = sparse(u.bfloat16(), u.bfloat16(), gate)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def _network() -> ClusIR:
    torch.manual_seed(0)
    model = ClusIR(replace(CONFIGS["tiny"], widths=(16, 24, 32), blocks=(1, 1, 1), refine_blocks=1)).train()
    for module in model.modules():
        if isinstance(module, ClusterRouter):
            module.eval()  # its noise would differ between the two
    torch.nn.init.normal_(model.head.weight, std=0.02)
    return model


@needs_card
def test_a_captured_step_gives_the_gradients_of_a_plain_one() -> None:
    plain = _network().cuda()
    twin = copy.deepcopy(plain)
    forward = GraphedForward(twin)
    for seed, size in ((1, 64), (2, 64), (3, 96)):
        image = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(seed)).cuda()
        for model, call in ((plain, plain), (twin, lambda x: forward(x, half=False))):
            model.zero_grad(set_to_none=True)
            out = call(image)
            torch.autograd.backward(out.restored.square().mean() + out.posteriors[0].square().sum())
        for (name, one), other in zip(plain.named_parameters(), twin.parameters(), strict=True):
            expected = torch.zeros_like(one) if one.grad is None else one.grad
            torch.testing.assert_close(other.grad, expected, atol=2e-3, rtol=2e-2, msg=name)  # TF32 on both sides


@needs_card
def test_a_run_on_a_card_goes_on_after_a_stop(tmp_path: Path, write_photos) -> None:
    photos = write_photos(tmp_path / "photos", 45, size=80)
    config = TrainConfig(
        steps=6, stages=(Stage(0.0, 4, 32, 1), Stage(0.6, 4, 64, 1)), warmup_steps=2, calibrate_at=(),
        deblur_batches=0, validate_every_s=1e9, validation_photos=1, validation_crop_px=64,
    )  # fmt: skip
    done: list[int] = []
    train(config, photos, tmp_path / "run", device="cuda", observe=lambda p: done.append(p.step),
          stop=lambda: len(done) == 3, workers=2)  # fmt: skip
    assert read_header(tmp_path / "run" / "state.safetensors")["step"] == 3
    train(config, photos, tmp_path / "run", device="cuda", resume=True, observe=lambda p: done.append(p.step))
    assert done == [1, 2, 3, 4, 5, 6]
