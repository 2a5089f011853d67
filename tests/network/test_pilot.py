"""The Wiener filter behind the network: exact where nothing was taken away, and a picture's own block transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

from clusir.network import checkpoint
from clusir.network.pilot import TAKEN, PilotFilter, cosine_bank
from clusir.network.pooled import PooledStatistics

NOISE = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
ACTS = torch.tensor([[1.0, 0.3, 0.2, 0.1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])


def filled(shrink: float, give: float, doubt: float = 1.0, *, says: tuple[float, float] = (0.0, 0.0)) -> PilotFilter:
    """``says``: what its network over blocks says of each block, before the tanh."""
    pilot = PilotFilter()
    with torch.no_grad():
        assert pilot.say.bias is not None
        pilot.say.bias[:192], pilot.say.bias[192:] = says
        pilot.shrink.fill_(shrink)
        pilot.give.fill_(give)
        pilot.doubt.fill_(doubt)
    return pilot


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """What came in and what was made of it, 1x3x64x96 each."""
    image, restored = torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    return image, restored


def test_the_bank_is_orthonormal_and_its_first_wave_is_the_mean() -> None:
    rows = cosine_bank().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(64), atol=1e-5, rtol=0)
    assert (rows[0] == rows[0, 0]).all()


@torch.no_grad()
def test_blocks_taken_apart_and_put_together_are_the_picture(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, restored = pair
    all_given_back = restored + filled(0.0, 1.0, 0.0)(image - restored, restored, ACTS)
    torch.testing.assert_close(all_given_back, image, atol=2e-6, rtol=0)
    nothing_kept = restored + filled(1e9, 0.0)(image - restored, restored, ACTS)
    assert nothing_kept.abs().max() < 1e-4


@torch.no_grad()
def test_a_block_is_filtered_by_its_formula(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Grey pictures, whose colours differ in nothing, by scipy's transform of every block."""
    image, restored = (x.mean(dim=1, keepdim=True).expand_as(x) for x in pair)
    pilot, s, shrink, give, doubt, own = filled(0.3, 0.6, 2.0, says=(0.2, -0.1)), 0.5, 0.3, 0.6, 2.0, 0.2
    pilot.own.fill_(own)
    found = restored + pilot(image - restored, restored, torch.tensor([[1.0, s, s, s, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    shrink, doubt = (x * math.exp(3 * math.tanh(said)) for x, said in ((shrink, 0.2), (doubt, -0.1)))

    def blocks(x: torch.Tensor) -> np.ndarray:
        padded = np.pad(x[0, 0].double().numpy() * 3**0.5 * 8, 4, mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(padded, (8, 8))[::4, ::4]
        return np.asarray(scipy.fft.dctn(views, axes=(2, 3), norm="ortho"))

    y, d = blocks(restored), blocks(image - restored)
    mean = scipy.ndimage.uniform_filter(y * y, (3, 3, 1, 1))[1:-1, 1:-1]  # blocks with all eight around them
    y, d = y[1:-1, 1:-1], d[1:-1, 1:-1]
    energy = own * y * y + (1 - own) * mean
    new = scipy.fft.idctn(
        y - y * shrink * s / (energy + shrink * s) + d * give * energy / (energy + doubt * s), axes=(2, 3), norm="ortho"
    )
    # The cell of 4x4 pixels that four blocks share, the first of them the one at the corner of the picture.
    first = new[0, 0, 4:, 4:] + new[0, 1, 4:, :4] + new[1, 0, :4, 4:] + new[1, 1, :4, :4]
    np.testing.assert_allclose(found[0, 1, 4:8, 4:8].numpy(), first / 4 / 8 / 3**0.5, atol=1e-6)


@torch.no_grad()
def test_nothing_is_added_before_the_fit_where_it_may_not_act_and_where_nothing_was_taken_away(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    away, restored = pair[0] - pair[1], pair[1]
    pilot = filled(0.5, 0.5, says=(0.5, 0.5))
    assert pilot(away, restored, ACTS).abs().max() > 0.1
    assert not PilotFilter()(away, restored, ACTS).any()
    assert not pilot(away, restored, torch.cat((torch.zeros(1, 1), ACTS[:, 1:]), dim=1)).any()
    taken = pilot.taken(0 * away, NOISE, torch.ones(1, 1))
    assert not pilot(0 * away, restored, taken).any()


@torch.no_grad()
def test_it_acts_where_noise_or_jpeg_is_mended(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    pilot, away, share = PilotFilter(), pair[0] - pair[1], torch.full((1, 1), 0.5)
    for family in range(6):
        may = torch.zeros(1, 6)
        may[0, family] = 0.75
        taken = pilot.taken(away, may, share)
        assert taken[0, 0] == (0.75 if family < 2 else 0.0)
        torch.testing.assert_close(taken[:, 4:], may)
        may[0, 0] = 1.0
        assert pilot.taken(away, may, share)[0, 0] == 1.0


@torch.no_grad()
def test_what_it_is_told_is_the_mean_square_of_what_was_taken_away(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    away, share = pair[0] - pair[1], torch.full((1, 1), 0.5)
    taken = PilotFilter().taken(away, NOISE, share)
    assert taken.shape == (1, TAKEN)
    wanted = (8.0 * 0.5 * away).square().sum(dim=1).mean()  # in the filter's own unit
    torch.testing.assert_close(taken[:, 1:4].sum(), wanted)
    grey = away.mean(dim=1, keepdim=True).expand_as(away)
    assert PilotFilter().taken(grey, NOISE, share)[0, 2:4].max() < 1e-6


@torch.no_grad()
def test_the_network_over_blocks_sees_blocks_their_neighbours_noise_and_what_is_mended(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    torch.manual_seed(0)
    away, restored = pair[0] - pair[1], pair[1]
    pilot = filled(0.5, 0.5)
    torch.nn.init.normal_(pilot.say.weight, std=0.05)
    found = pilot(away, restored, ACTS)
    for what, other in (("noise", ACTS * torch.tensor([1.0, 4.0, 1.0, 1.0] + 6 * [1.0])), ("mended", ACTS.flip(1))):
        other[:, 0] = 1.0
        assert (pilot(away, restored, other) - found).abs().max() > 1e-3, what
    # Four blocks touch a cell of 4x4 pixels; nine around each are averaged, and nine of those looked at.
    poked = restored.clone()
    poked[..., 32:36, 48:52] += 0.5
    change = (pilot(away, poked, ACTS) - found).abs().amax(dim=(0, 1)) > 1e-7
    down, right = (torch.nonzero(change.any(dim=axis)).flatten() for axis in (1, 0))
    assert (down.min(), down.max()) == (32 - 12, 35 + 12)
    assert (right.min(), right.max()) == (48 - 12, 51 + 12)


@torch.no_grad()
def test_noise_that_was_left_is_lessened_and_detail_that_was_taken_comes_back() -> None:
    generator = torch.Generator().manual_seed(1)
    wave = 0.5 + 0.3 * torch.sin(torch.arange(96) * 0.9).expand(1, 3, 64, 96)
    noise = 0.1 * torch.randn(1, 3, 64, 96, generator=generator)
    for restored, pilot in ((wave + 0.3 * noise, filled(0.5, 0.0)), (0.8 * (wave - 0.5) + 0.5, filled(0.0, 0.5))):
        image = wave + noise
        taken = pilot.taken(image - restored, NOISE, torch.ones(1, 1))
        after = restored + pilot(image - restored, restored, taken)
        assert (after - wave).square().mean() < 0.75 * (restored - wave).square().mean()


@torch.no_grad()
def test_bright_blocks_and_answers_far_outside_are_finite_in_float16(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, restored = pair
    for says in (-9.0, 9.0):
        pilot = filled(math.exp(3), 0.5, math.exp(3), says=(says, says)).half()
        pilot.shrink_power.fill_(0.5)
        pilot.doubt_power.fill_(-0.5 if says < 0 else 0.5)
        far = torch.where(restored > 0.9, 1e4, 1.0).half()
        taken = pilot.taken(image.half() - far, NOISE.half(), torch.ones(1, 1).half())
        assert pilot(image.half() - far, far, taken).isfinite().all()
        for much in (0.0, 1e-3, 1e4):
            taken = torch.cat((torch.tensor([[1.0, much, much, much]]), NOISE), dim=1).half()
            assert pilot((image - restored).half(), restored.half(), taken).isfinite().all()


@torch.no_grad()
def test_the_network_keeps_its_answer_without_a_fitted_filter_and_tiles_share_what_it_is_told() -> None:
    model = checkpoint.load(checkpoint.shipped())
    assert model.pilot is not None
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.4
    recorded = PooledStatistics()
    seen = model(image, None, recorded, NOISE)
    found = model(image, tuple(zip(seen.posteriors, seen.gates, strict=True)), PooledStatistics(recorded.recorded()))
    torch.testing.assert_close(found.restored, seen.restored, atol=1e-5, rtol=0)
    model.pilot.load_state_dict(PilotFilter().state_dict())
    plain = model(image, None, None, NOISE).restored
    assert (plain - seen.restored).abs().max() > 1e-4
