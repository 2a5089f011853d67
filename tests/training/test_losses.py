"""Losses: values that can be worked out by hand, and the direction of their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from clusir.network.model import CONFIGS, ClusIR
from clusir.network.router import ClusterRouter
from clusir.training.data import Batch
from clusir.training.losses import (
    agreement_loss,
    balance_loss,
    cluster_loss,
    log_error,
    orthogonality_loss,
    partner_joint,
    spectrum_error,
)
from clusir.training.routing import calibrate_routers, discriminant

# Two photos times two recipes, as draw_batch lays them out.
RECIPE, PHOTO = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])


def uniform(clusters: int) -> list[torch.Tensor]:
    return [torch.full((clusters, clusters), 1 / clusters**2)]


def test_log_error_is_minus_psnr_and_weighs_a_picture_by_its_own_error() -> None:
    clean = torch.zeros(2, 3, 4, 4)
    restored = torch.stack([torch.full((3, 4, 4), 0.01), torch.full((3, 4, 4), 0.1)]).requires_grad_()
    loss = log_error(restored, clean)
    psnr = (40.0 + 20.0) / 2
    assert loss.item() * 20 / math.log(10) == pytest.approx(-psnr, abs=0.5)  # the floor costs 0.4 dB at 40 dB
    loss.backward()
    small, large = restored.grad[0].sum(), restored.grad[1].sum()
    assert (small / large).item() == pytest.approx((0.01 / (1e-4 + 2e-5)) / (0.1 / (1e-2 + 2e-5)), rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.4, 0.9, 1.0])
def test_bent_error_has_a_slope_of_its_power_and_meets_the_logarithm(power: float) -> None:
    errors = torch.tensor([0.01, 0.05, 0.25])
    clean = torch.zeros(3, 3, 4, 4)
    restored = errors.view(3, 1, 1, 1).expand(3, 3, 4, 4).clone().requires_grad_()
    shifted = (errors.square() + 2e-5).sqrt()
    log_error(restored, clean, power).backward()
    slope = restored.grad.flatten(1).sum(1) * 3 * shifted / errors  # by the RMSE with its floor, per picture
    torch.testing.assert_close(slope, (0.05 / shifted) ** power / 0.05, rtol=1e-4, atol=0)
    at_typical = torch.full((1, 3, 4, 4), math.sqrt(0.05**2 - 2e-5))
    assert log_error(at_typical, clean[:1], power).item() == pytest.approx(math.log(0.05), abs=1e-4)


def test_log_error_of_a_perfect_picture_has_no_gradient() -> None:
    clean = torch.rand(1, 3, 4, 4)
    restored = clean.clone().requires_grad_()
    log_error(restored, clean).backward()
    assert restored.grad.abs().max() == 0


def test_spectrum_error_sees_an_error_of_either_phase() -> None:
    clean = torch.zeros(1, 3, 8, 8)
    x = torch.arange(8) * 2 * math.pi / 8
    sine, cosine = (0.1 * wave.expand(1, 3, 8, 8) for wave in (x.sin(), x.cos()))
    assert spectrum_error(sine, clean).item() == pytest.approx(spectrum_error(cosine, clean).item(), rel=1e-4)
    assert spectrum_error(sine, clean) > spectrum_error(clean, clean) + 0.5


def test_orthogonality_is_zero_for_orthogonal_rows_and_one_for_equal_ones() -> None:
    assert orthogonality_loss([torch.eye(4, 8)]).item() == 0
    assert orthogonality_loss([torch.eye(8)[:1].expand(3, 8)]).item() == pytest.approx(1)
    crowded = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0.1, 1], [0, -1]]), dim=1)
    assert orthogonality_loss([crowded]).item() == pytest.approx((2 * (crowded[1] @ crowded[2] + 0.2) ** 2 / 6).item())


def test_balance_is_zero_at_balance_and_pushes_a_favourite_down() -> None:
    even = torch.full((4, 4), 0.25)
    assert balance_loss([even], [torch.eye(4) * 0.25]).item() == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([2.0, 0, 0, 0]).expand(4, 4).clone().requires_grad_()
    probability = logits.softmax(1)
    gate = torch.zeros(4, 4).index_fill(1, torch.tensor([0]), 0.7)
    loss = balance_loss([probability], [gate])
    loss.backward()
    assert loss > 0.5
    assert logits.grad[:, 0].min() > 0


def test_cluster_loss_prefers_sure_posteriors_over_all_clusters() -> None:
    past = [torch.full((4,), 0.25)]
    sure = cluster_loss([torch.eye(4)], past).item()
    unsure = cluster_loss([torch.full((4, 4), 0.25)], past).item()
    collapsed = cluster_loss([torch.eye(4)[:1].expand(4, 4)], past).item()
    assert sure == pytest.approx(-math.log(4), abs=1e-5)
    assert unsure == pytest.approx(0, abs=1e-5)
    assert sure < collapsed


def test_the_joint_of_partners_counts_pairs_that_share_degradation_and_not_the_photo() -> None:
    posterior = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    joint = partner_joint(posterior, RECIPE, PHOTO)
    assert joint is not None
    torch.testing.assert_close(joint, torch.tensor([[0.5, 0.25], [0.25, 0.0]]))
    assert partner_joint(posterior[:2], torch.tensor([0, 1]), torch.tensor([0, 1])) is None


def test_agreement_is_best_when_clusters_follow_degradation_and_worst_when_they_follow_content() -> None:
    by_degradation, by_content = torch.eye(2)[RECIPE], torch.eye(2)[PHOTO]
    flat, one = torch.full((4, 2), 0.5), torch.eye(2)[torch.zeros(4, dtype=torch.long)]
    values = [agreement_loss([p], uniform(2), RECIPE, PHOTO).item() for p in (by_degradation, flat, by_content, one)]
    assert values[0] < values[1] < values[3]
    assert values[0] < values[2]


def test_agreement_leads_out_of_a_nearly_collapsed_start() -> None:
    torch.manual_seed(0)
    logits = (0.05 * torch.randn(4, 4) + torch.tensor([1.0, 0, 0, 0])).requires_grad_()
    joints = uniform(4)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(300):
        posterior = logits.softmax(1)
        optimizer.zero_grad()
        agreement_loss([posterior], joints, RECIPE, PHOTO).backward()
        optimizer.step()
        joints[0].lerp_(partner_joint(posterior.detach(), RECIPE, PHOTO), 0.05)
    best = logits.argmax(1)
    assert best[0] == best[1] != best[2] == best[3]


def test_the_discriminant_finds_the_direction_of_degradation_under_stronger_content() -> None:
    torch.manual_seed(0)
    recipe, photo = torch.arange(60).repeat_interleave(4) // 2, torch.arange(240)
    degradation, content = torch.randn(120, 1)[recipe], 5 * torch.randn(240, 1)
    mixing = torch.randn(2, 6)
    features = torch.cat([degradation, content], 1) @ mixing + 3
    directions, mean = discriminant(features, recipe, photo, 1)
    found = ((features - mean) @ directions)[:, 0]
    assert torch.corrcoef(torch.stack([found, degradation[:, 0]]))[0, 1].abs() > 0.95


def test_calibration_spreads_an_untrained_router_and_touches_nothing_else() -> None:
    torch.manual_seed(0)
    model = ClusIR(CONFIGS["tiny"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = torch.rand(16, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.rand(8).repeat_interleave(2).view(16, 1, 1, 1) * torch.randn(16, 3, 32, 32)
    recipe, photo = torch.arange(8).repeat_interleave(2), torch.arange(16)
    batch = Batch((clean + 0.3 * noise).clamp(0, 1), clean, recipe, photo, ("noise",) * 16, torch.ones(16, 6))
    model.eval()

    def spread() -> float:
        with torch.no_grad():
            return min(float(posterior.std(0).mean()) for posterior in model(batch.degraded).posteriors)

    spread_before = spread()
    changed = calibrate_routers(model, [batch])
    assert {id(p) for p in changed} == {
        id(p) for name, p in model.named_parameters() if ".router.project." in name or ".router.see." in name
    }
    assert spread() > 3 * spread_before
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (".router.project." in name or ".router.see." in name), name
    assert sum(isinstance(m, ClusterRouter) for m in model.modules()) == 3
