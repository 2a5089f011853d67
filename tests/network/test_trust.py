"""How much of the mending is kept: all until it is fitted, less where what was done is no degradation's opposite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clusir.network import checkpoint
from clusir.network.evidence import FAMILY_COUNT
from clusir.network.model import CONFIGS, ClusIR
from clusir.network.pilot import TAKEN, PilotFilter
from clusir.network.pooled import PooledStatistics
from clusir.network.trust import RESIDUALS, TrustHead, residual_statistics

TINY = replace(CONFIGS["tiny"], permissions=True)
SHARE = -1 - TAKEN  # the last of a picture's statistics are the share and what the filter is told


@pytest.fixture(scope="module")
def doubting() -> ClusIR:
    """A network whose share is neither 0 nor 1, and depends on the picture."""
    model = checkpoint.random_model(TINY)
    assert model.trust is not None
    with torch.no_grad():
        model.trust.say.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        model.trust.say.bias.zero_()
    assert model.pilot is not None  # whose filter would change what is kept
    model.pilot.load_state_dict(PilotFilter().state_dict())
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def share(model: ClusIR, image: torch.Tensor, permissions: torch.Tensor) -> torch.Tensor:
    """Which part of the full mending is there, B."""
    told = model(image, permissions=permissions).restored - image
    full = model(image, permissions=torch.where(permissions < 0, -permissions, permissions)).restored - image
    return (told * full).sum(dim=(1, 2, 3)) / full.square().sum(dim=(1, 2, 3))


def test_unasked_a_share_of_the_mending_is_kept_and_asked_outright_all(doubting: ClusIR, image: torch.Tensor) -> None:
    unasked = -torch.ones(2, FAMILY_COUNT)
    with torch.no_grad():
        kept = share(doubting, image, unasked)
        assert ((kept > 0.01) & (kept < 0.99)).all()
        assert kept[0] != kept[1]  # each picture its own
        told = doubting(image, permissions=unasked).restored
        full = doubting(image, permissions=-unasked).restored
        blend = image + kept[:, None, None, None] * (full - image)
        torch.testing.assert_close(told, blend, atol=1e-5, rtol=0)
        outright = unasked.clone()
        outright[0, 0] = 1.0
        mixed = doubting(image, permissions=outright).restored
        assert torch.equal(mixed[0], full[0])
        assert torch.equal(mixed[1], told[1])


def test_tiles_share_what_the_windows_middles_say(doubting: ClusIR, image: torch.Tensor) -> None:
    with torch.no_grad():
        pooled = PooledStatistics(together=True)
        done = doubting(image, None, pooled)
        numbers = pooled.recorded()
        assert numbers.shape == (1, doubting.statistics_size())
        assert 0.01 < float(numbers[0, SHARE]) < 0.99
        routing = tuple((p.expand(2, -1), g.expand(2, -1)) for p, g in zip(done.posteriors, done.gates, strict=True))
        tiles = doubting(image, routing, PooledStatistics(numbers.expand(2, -1))).restored
        torch.testing.assert_close(tiles, done.restored, atol=2e-6, rtol=0)
        # Of small windows everything is looked at, of large ones the middle half of each side.
        small = image[:1, :, :32, :48]
        whole, windows = PooledStatistics(), PooledStatistics(together=True)
        doubting(small, None, whole)
        doubting(small, None, windows)
        torch.testing.assert_close(whole.recorded()[:, SHARE], windows.recorded()[:, SHARE], atol=1e-5, rtol=0)


@pytest.mark.parametrize("asked", [-1.0, -2.0, 1.0])
def test_an_answer_far_outside_is_not_kept_whoever_asked(image: torch.Tensor, asked: float) -> None:
    model = checkpoint.random_model(TINY)
    assert model.trust is not None
    permissions = torch.full((2, FAMILY_COUNT), asked)
    with torch.no_grad():
        assert model(image, permissions=permissions).restored.abs().max() > 1.5
        model.trust.limit.fill_(1e-3)
        for gain in (1.0, 1e30):
            model.head.weight.mul_(gain)
            assert torch.equal(model(image, permissions=permissions).restored, image)
            tiles = PooledStatistics(together=True)
            done = model(image, None, tiles, permissions[:1])
            assert torch.equal(done.restored, image)
            both = [(p.expand(2, -1), g.expand(2, -1)) for p, g in zip(done.posteriors, done.gates, strict=True)]
            given = PooledStatistics(tiles.recorded().expand(2, -1))
            assert torch.equal(model(image, tuple(both), given).restored, image)
        model.train()  # where nothing is withheld: what is learnt is the whole of it
        assert model(image, permissions=permissions).restored.abs().max() > 1e6


def test_an_answer_a_little_outside_is_kept(image: torch.Tensor) -> None:
    head, ones = TrustHead(FAMILY_COUNT), torch.ones(2, FAMILY_COUNT)
    near, far = (torch.where(image > 0.5, 1 + beyond, image) for beyond in (0.02, 0.2))
    head.limit.fill_(1e-3)
    with torch.no_grad():
        assert (head(ones, ones, image, near) == 1).all()
        assert (head(ones, ones, image, far) == 0).all()


def test_weights_without_trust_keep_all_they_mend(doubting: ClusIR, image: torch.Tensor) -> None:
    state = {name: value for name, value in doubting.state_dict().items() if not name.startswith("trust.")}
    found = checkpoint.random_model(TINY, seed=3)
    found.load_state_dict(state)
    with torch.no_grad():
        told = [found(image, permissions=torch.full((2, FAMILY_COUNT), p)).restored for p in (-1.0, 1.0)]
    assert torch.equal(*told)


def test_residual_statistics_tell_noise_that_is_gone_from_detail_that_is() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 128)
    smooth = (0.3 + 0.4 * x[None, None, :, None] * x).expand(1, 3, 128, 128)
    textured = smooth.clone()
    textured[..., :64] += 0.05 * torch.randn(1, 3, 128, 64, generator=generator)
    noisy = smooth + 0.05 * torch.randn(1, 3, 128, 128, generator=generator)
    taken = [residual_statistics(picture, smooth)[0] for picture in (noisy, textured)]
    half = residual_statistics(noisy, 0.5 * noisy + 0.5 * smooth)[0]
    assert all(t.shape == (RESIDUALS,) for t in taken)
    # All of the high pass was taken away: <d, h> / <h, h> is about -1, of half of it -0.5; <d, d> / <h, h> 1 and 0.25.
    assert taken[0][8] == pytest.approx(-1, abs=0.1)
    assert half[8] == pytest.approx(-0.5, abs=0.05)
    assert half[10] == pytest.approx(float(taken[0][10]) / 4, rel=0.01)
    # Half of what went from the noisy picture is left, and lies where it went: everywhere, or on one side.
    left = residual_statistics(textured, 0.5 * textured + 0.5 * smooth)[0]
    assert left[6] > half[6] + 0.3
    torch.testing.assert_close(taken[0][3:6], torch.zeros(3), atol=0.05, rtol=0)  # means of the residual, times 30


def test_windows_of_a_picture_are_one_picture() -> None:
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    restored = image * 0.9
    apart = residual_statistics(image, restored)
    together = residual_statistics(image, restored, PooledStatistics(together=True))
    assert together.shape == (1, RESIDUALS)
    torch.testing.assert_close(together[0, :3].exp(), apart[:, :3].exp().mean(dim=0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(together[0, 3:6], apart[:, 3:6].mean(dim=0), atol=1e-5, rtol=0)
