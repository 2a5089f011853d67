"""A hand on the wheel: permissions start as nothing, follow the picture through its tiles, and forbid what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clusir.errors import UsageError
from clusir.network import checkpoint
from clusir.network.evidence import FAMILY_COUNT, TONES, EvidenceHead, TonalStatistics
from clusir.network.model import CONFIGS, ClusIR
from clusir.network.pooled import PooledStatistics

TINY = replace(CONFIGS["tiny"], permissions=True)


@pytest.fixture(scope="module")
def model() -> ClusIR:
    return checkpoint.random_model(TINY)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_without_permissions_everything_is_permitted_and_they_matter(model: ClusIR, image: torch.Tensor) -> None:
    with torch.no_grad():
        plain, ones = model(image), model(image, permissions=torch.ones(2, FAMILY_COUNT))
        assert torch.equal(plain.restored, ones.restored)
        assert plain.evidence is not None
        assert plain.evidence.shape == (2, FAMILY_COUNT)
        for family in range(FAMILY_COUNT):
            less = torch.ones(2, FAMILY_COUNT)
            less[:, family] = 0
            assert (model(image, permissions=less).restored - plain.restored).abs().max() > 1e-4, family


def test_an_untrained_network_ignores_permissions_and_returns_its_input(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = ClusIR(TINY).eval()
    with torch.no_grad():
        assert torch.equal(model(image, permissions=torch.rand(2, FAMILY_COUNT)).restored, image)


def test_a_family_with_less_evidence_than_its_threshold_loses_its_permission(
    model: ClusIR, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusir.network.evidence.BLUR_BESIDE_FAULTS", 0.0)
    with torch.no_grad():
        evidence = model(image[:1]).evidence
        assert evidence is not None
        head = model.evidence
        assert head is not None
        one, everything = image[:1], torch.ones(1, FAMILY_COUNT)
        head.thresholds.copy_(evidence[0])  # as much as there is: permitted
        try:
            assert torch.equal(model(one).restored, model(one, permissions=everything).restored)
            head.thresholds[4] += 1e-3
            without = everything.clone()
            without[:, 4] = 0
            refused = model(one)
            assert torch.equal(refused.restored, model(one, permissions=without).restored)
            assert torch.equal(refused.evidence, evidence)
            # Asked for outright, evidence does not matter; in part, it decides between the part and nothing.
            assert not torch.equal(model(one, permissions=everything).restored, refused.restored)
            parts = torch.tensor([[0.5, 1.0, 1.0, 1.0, 0.0, 1.0]])
            asked = torch.tensor([[-0.5, 1.0, -1.0, 1.0, -0.5, 1.0]])
            assert torch.equal(model(one, permissions=asked).restored, model(one, permissions=parts).restored)
        finally:
            head.thresholds.zero_()


def test_everything_is_what_reaches_the_floors(model: ClusIR, image: torch.Tensor) -> None:
    head, one = model.evidence, image[:1]
    assert head is not None
    with torch.no_grad():
        evidence = model(one).evidence
        assert evidence is not None
        head.floors.copy_(evidence[0])
        head.floors[2] += 1e-3
        head.thresholds.fill_(1.0)
        try:
            for share in (1.0, 0.5):
                permissions = torch.full((1, FAMILY_COUNT), share)
                permissions[0, 2] = 0
                told = model(one, permissions=torch.full((1, FAMILY_COUNT), -1 - share))
                assert torch.equal(told.restored, model(one, permissions=permissions).restored)
            unasked = model(one, permissions=torch.full((1, FAMILY_COUNT), -1.0))  # -1 asks the thresholds
            assert torch.equal(unasked.restored, model(one, permissions=torch.zeros(1, FAMILY_COUNT)).restored)
        finally:
            head.floors.zero_()
            head.thresholds.zero_()


def test_weights_without_floors_mend_all_they_are_asked(model: ClusIR, image: torch.Tensor) -> None:
    state = model.state_dict()
    del state["evidence.floors"]
    found = ClusIR(TINY).eval()
    found.load_state_dict(state)
    with torch.no_grad():
        told = [found(image[:1], permissions=torch.full((1, FAMILY_COUNT), p)).restored for p in (-2.0, 1.0)]
    assert torch.equal(*told)


def test_tiles_need_no_permissions_of_their_own(model: ClusIR, image: torch.Tensor) -> None:
    permissions = torch.tensor([[1.0, 0.0, 0.3, 1.0, 0.0, 0.0]])
    with torch.no_grad():
        pooled = PooledStatistics(together=True)
        one = model(image[:1], None, pooled, permissions)
        routing = tuple(zip(one.posteriors, one.gates, strict=True))
        tile = model(image[:1], routing, PooledStatistics(pooled.recorded()))
        assert tile.evidence is None
        assert torch.allclose(tile.restored, one.restored, atol=2e-6)
        batch = model(image, permissions=permissions.expand(2, -1)).restored
        assert torch.allclose(batch[:1], one.restored, atol=2e-6)


def test_nothing_moves_tones_or_sharpens_where_it_is_not_permitted(image: torch.Tensor) -> None:
    model = checkpoint.random_model(TINY)
    with torch.no_grad():
        torch.nn.init.zeros_(model.head.weight)  # leaves the tone map and the deblurring in front
        nothing = model(image, permissions=torch.zeros(2, FAMILY_COUNT)).restored
        assert torch.equal(nothing, image)
        for family in (2, 4, 5):  # blur, haze, low light
            one = torch.zeros(2, FAMILY_COUNT)
            one[:, family] = 1
            assert (model(image, permissions=one).restored - image).abs().max() > 1e-5


def test_samples_taken_together_are_judged_together(model: ClusIR, image: torch.Tensor) -> None:
    with torch.no_grad():
        same = image[:1].expand(3, -1, -1, -1)
        together = model(same, None, PooledStatistics(together=True)).evidence
        assert together is not None
        assert together.shape == (1, FAMILY_COUNT)
        assert torch.allclose(together, model(image[:1]).evidence, atol=1e-5)


def test_tonal_statistics_see_a_veil_and_darkness() -> None:
    tones = TonalStatistics()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, hazy, dark = (tones(picture) for picture in (x, 0.4 * x + 0.5, 0.1 * x))
    assert plain.shape == (1, TONES)
    assert (hazy - plain).abs().max() > 0.5
    assert (dark - plain).abs().max() > 0.5


def test_wider_windows_tell_a_night_with_lights_from_a_picture_that_is_dark_throughout() -> None:
    tones = TonalStatistics()
    dark = 0.1 * torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    lit = dark.clone()
    lit[:, :, 20::64, 20::64] = 1.0  # one lamp in each of 16 parts: a fiftieth of the small blocks
    apart = (tones(lit) - tones(dark)).abs()[0]
    assert (apart > 0.5).sum() >= 8
    assert float(apart[:36].max()) < 0.05
    assert tones(dark[..., :16, :16]).isfinite().all()


def test_permissions_need_the_parts_that_they_steer() -> None:
    with pytest.raises(UsageError, match="permissions"):
        replace(CONFIGS["small"], permissions=True)
    assert not CONFIGS["tiny"].permissions
    assert checkpoint.load(checkpoint.shipped()).config.permissions in (True, False)


def test_blur_beside_noise_or_jpeg_needs_more_evidence_than_alone() -> None:
    head = EvidenceHead()
    head.thresholds.fill_(0.2)
    head.floors.fill_(0.1)
    for fault in (0, 1):
        for blur, alone, beside in ((0.15, 0.0, 0.0), (0.5, 1.0, 0.0), (0.65, 1.0, 1.0)):
            evidence = torch.zeros(2, FAMILY_COUNT)
            evidence[:, 2] = blur
            evidence[0, fault] = 0.9
            found = head.permit(-torch.ones(2, FAMILY_COUNT), evidence)
            assert found[:, 2].tolist() == [beside, alone]
            assert found[:, fault].tolist() == [1.0, 0.0]
            floored = head.permit(torch.full((2, FAMILY_COUNT), -1.5), evidence)
            assert floored[:, 2].tolist() == [0.5 * beside, 0.5]
            asked = -torch.ones(2, FAMILY_COUNT)
            asked[:, 2] = 0.75  # outright: no evidence is asked
            assert head.permit(asked, evidence)[:, 2].tolist() == [0.75, 0.75]
            asked[:, 2], asked[:, fault] = -1.0, 0.0  # noise is to stay: blur is judged alone
            assert head.permit(asked, evidence)[:, 2].tolist() == [alone, alone]
