"""The Wiener filter behind the network: exact where nothing was taken away, and a picture's own block transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

from clusir.degrade.recipe import FAMILY_NAMES
from clusir.network import checkpoint
from clusir.network.exposure import correct
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


COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


def blocks(x: torch.Tensor) -> np.ndarray:
    """scipy's transform of every block of 8x8 of a picture 1x3xHxW, by colour: 3xhxwx8x8."""
    padded = np.pad(np.tensordot(COLOURS, x[0].double().numpy() * 8, 1), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))[:, ::4, ::4]
    return np.asarray(scipy.fft.dctn(views, axes=(3, 4), norm="ortho"))


def around(energy: np.ndarray) -> np.ndarray:
    """The mean over the blocks around each that there are, of 3xhxwx8x8."""
    weights = (1, 3, 3, 1, 1)
    there = scipy.ndimage.uniform_filter(np.ones_like(energy), weights, mode="constant")
    return np.asarray(scipy.ndimage.uniform_filter(energy, weights, mode="constant") / there)


def network_over_blocks(pilot: PilotFilter, energy: np.ndarray, away: np.ndarray, told: np.ndarray) -> np.ndarray:
    """How much more each coefficient is shrunk, and doubted, 2x3xhxwx8x8, from energies 3xhxwx8x8."""
    weights = {name: value.double().numpy() for name, value in pilot.named_parameters()}
    octave = [0, *(1 + int(math.log2(k)) for k in range(1, 8))]
    seen = []
    for x in (energy, away):
        for colour, s in zip(x, told[1:4], strict=True):
            for down in range(4):
                for right in range(4):
                    rows, columns = (np.flatnonzero(np.array(octave) == k) for k in (down, right))
                    mean = colour[:, :, rows[:, None], columns].mean(axis=(2, 3))
                    seen.append(0.3 * (np.log(mean + 2e-4) - np.log(s + 2e-4)))
    given = weights["told.weight"] @ np.append(0.3 * np.log(told[1:4] + 2e-4), told[4:]) + weights["told.bias"]
    known = np.array(seen) + given[:, None, None]
    read = np.tensordot(weights["read.weight"][..., 0, 0], known, 1) + weights["read.bias"][:, None, None]
    read = np.pad(read.clip(0), ((0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(read, (3, 3), axis=(1, 2))
    look = np.einsum("chwij,ocij->ohw", views, weights["look.weight"]) + weights["look.bias"][:, None, None]
    said = np.tensordot(weights["say.weight"][..., 0, 0], look.clip(0), 1) + weights["say.bias"][:, None, None]
    more = np.exp(3 * np.tanh(said)).reshape(2, 3, 8, 8, *said.shape[1:])
    return np.moveaxis(more, (2, 3), (4, 5))


@torch.no_grad()
def test_a_block_is_filtered_by_its_formula(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Where a small network says of each block where to filter more, by scipy's transform of every block."""
    away, restored = 0.5 * (pair[0] - pair[1]), pair[1]
    pilot, shrink, give, doubt, own = filled(0.3, 0.6, 2.0, says=(0.2, -0.1)), 0.3, 0.6, 2.0, 0.2
    torch.manual_seed(0)
    torch.nn.init.normal_(pilot.say.weight, std=0.05)
    pilot.own.fill_(own)
    told = np.array([1.0, 0.5, 0.3, 0.2, 1.0, 0.0, 0.4, 0.0, 0.0, 0.7])
    found = pilot(away, restored, torch.from_numpy(told).float()[None])

    y, d, s = blocks(restored), blocks(away), told[1:4, None, None, None, None]
    energy = own * y * y + (1 - own) * around(y * y)
    more_shrunk, more_doubted = network_over_blocks(pilot, energy, around(d * d), told)
    assert np.std(more_shrunk / more_doubted) > 0.1
    shrink, doubt = shrink * more_shrunk * s, doubt * more_doubted * s
    change = scipy.fft.idctn(
        d * give * energy / (energy + doubt) - y * shrink / (energy + shrink), axes=(3, 4), norm="ortho"
    )
    # A cell of 4x4 pixels is shared by four blocks.
    cells = (
        change[:, :-1, :-1, 4:, 4:]
        + change[:, :-1, 1:, 4:, :4]
        + change[:, 1:, :-1, :4, 4:]
        + change[:, 1:, 1:, :4, :4]
    )
    picture = cells.transpose(0, 1, 3, 2, 4).reshape(3, *found.shape[2:])
    np.testing.assert_allclose(found[0].numpy(), np.tensordot(COLOURS.T, picture, 1) / 4 / 8, atol=1e-5)


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


@torch.no_grad()
@pytest.mark.parametrize("families", [("noise",), ("noise", "blur"), ("noise", "low_light")])
def test_what_was_taken_is_what_the_network_took_of_its_own_base(families: tuple[str, ...]) -> None:
    """Of the picture itself, of the deblurred one, and of one whose tones were mended, with their correction."""
    model = checkpoint.load(checkpoint.shipped())
    assert model.pilot is not None
    assert model.tone is not None
    assert model.exposure is not None
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 0.05 + 0.05
    given: dict[str, torch.Tensor] = {}
    model.tone.register_forward_hook(lambda _part, _given, out: given.update(base=out))
    model.exposure.register_forward_hook(lambda _part, _given, out: given.update(correction=out))
    model.pilot.register_forward_pre_hook(lambda _part, args: given.update(away=args[0], restored=args[1]))
    model(image, None, None, torch.tensor([[float(name in families) for name in FAMILY_NAMES]]))
    base = correct(given["base"], given["correction"])
    torch.testing.assert_close(given["away"] + given["restored"], base, atol=2e-6, rtol=0)
    assert given["away"].abs().max() > 1e-3
    assert given["correction"].any() == ("low_light" in families)
    assert (given["base"] - image).abs().max() > 1e-3 or families == ("noise",)
