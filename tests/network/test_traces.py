"""The traces that degradation leaves: what each number says, and that tiles taken together give their mean."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clusir.degrade.optics import line_kernel
from clusir.network.pooled import PooledStatistics
from clusir.network.traces import BANDS, TRACES, DegradationTraces, OrientedEnergies

EXCESS = (1, 3, 5, 7)  # of the largest phase: vertical differences of order 1 and 2, then horizontal
LEVELS = (8, 10, 12, 14)  # vertical log energy from scale to scale


def photo(seed: int = 0, size: int = 128) -> torch.Tensor:
    """Smoothed noise with something of every scale, grey and colour."""
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
    layers = [F.interpolate(F.avg_pool2d(noise, k) if k > 1 else noise, size, mode="bilinear") for k in (1, 4, 16)]
    return torch.stack(layers).mean(0)


def test_blocks_of_eight_show_in_the_excess_of_one_phase_wherever_the_grid_lies() -> None:
    blocks = F.interpolate(torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1)), scale_factor=8)
    for shift in (0, 3):
        blocky = photo() + 0.5 * blocks[..., shift : shift + 128, shift : shift + 128]
        traces, plain = DegradationTraces()(blocky)[0], DegradationTraces()(photo())[0]
        for index in EXCESS:
            assert traces[index] > plain[index] + 0.5
    # Blocks of another size spread over the phases.
    fives = F.interpolate(torch.rand(1, 3, 27, 27, generator=torch.Generator().manual_seed(1)), scale_factor=5)
    assert DegradationTraces()(photo() + 0.5 * fives[..., :128, :128])[0, 1] < DegradationTraces()(blocky)[0, 1]


def test_blur_lowers_fine_energy_more_than_coarse() -> None:
    sharp = photo()
    blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="reflect"), 5, 1)
    drop = (DegradationTraces()(sharp) - DegradationTraces()(blurred))[0]
    drops = [float(drop[index]) for index in LEVELS]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0.5


def test_colour_noise_shows_in_the_colour_differences_only_a_little_in_grey() -> None:
    grey = photo().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    traces = DegradationTraces()(torch.cat((grey, photo())))
    assert (traces[1, -4:] > traces[0, -4:] + 1).all()


def test_one_differing_pixel_gives_the_value_worked_out_by_hand() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 9, 4] = 1.0  # grey 1; differences along the rows: +1 and -1 among 15 x 16
    level = DegradationTraces()(image)[0, 8]
    assert level.item() == pytest.approx(float(torch.log(torch.tensor(2 / 240 + 1e-3))) + 4, rel=1e-5)


def test_samples_taken_together_give_what_their_mean_energies_say_and_alone_they_do_not_mix() -> None:
    both = torch.cat((photo(0), photo(1) * 0.3))
    apart = DegradationTraces()(both)
    assert apart.shape == (2, TRACES)
    torch.testing.assert_close(apart[1:], DegradationTraces()(both[1:]))
    together = DegradationTraces()(both, PooledStatistics(together=True))
    levels = slice(8, TRACES)  # behind the eight that phases give
    torch.testing.assert_close(together[:, levels].exp(), _mean_energy(apart[:, levels]), atol=1e-4, rtol=1e-4)


def _mean_energy(logs: torch.Tensor) -> torch.Tensor:
    """exp of what the mean energy of the rows gives; offsets and floors of the logarithm drop out."""
    return logs.exp().mean(0, keepdim=True)


def test_halves_of_a_picture_in_blocks_show_together_what_the_whole_does() -> None:
    blocks = F.interpolate(torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)), scale_factor=8)
    whole = photo(0, 192) + 0.5 * blocks
    halves = torch.cat((whole[..., :96], whole[..., 96:]))
    found = DegradationTraces()(halves, PooledStatistics(together=True))[0, :8]
    torch.testing.assert_close(found, DegradationTraces()(whole)[0, :8], atol=0.1, rtol=0.05)


def wave(angle_deg: float, frequency: float, size: int = 96) -> torch.Tensor:
    """A wave that runs along ``angle_deg``, counter-clockwise from the x axis, around grey."""
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float32),) * 2, indexing="ij")
    angle = math.radians(angle_deg)
    phase = 2 * math.pi * frequency * (x * math.cos(angle) - y * math.sin(angle))
    return (0.5 + 0.2 * torch.cos(phase)).expand(1, 3, -1, -1)


@torch.inference_mode()
def test_a_wave_shows_most_in_the_band_of_its_frequency_and_orientation() -> None:
    for frequency_index, frequency in enumerate((0.08, 0.14, 0.22, 0.33)):
        for orientation in range(8):
            bands = OrientedEnergies()(wave(22.5 * orientation, frequency)).reshape(4, 9)
            energies = bands[:, :1] + 0.3 * bands[:, 1:]
            assert divmod(int(energies.argmax()), 8) == (frequency_index, orientation)


@torch.inference_mode()
def test_a_line_of_blur_spares_the_bands_across_it() -> None:
    noise = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    for angle, along, across in ((0.0, 0, 4), (90.0, 4, 0), (45.0, 2, 6)):
        kernel = torch.from_numpy(line_kernel(9.0, angle))[None, None].expand(3, 1, -1, -1)
        excess = OrientedEnergies()(F.conv2d(noise, kernel, groups=3)).reshape(4, 9)[1:, 1:]
        assert (excess[:, across] > excess[:, along] + 1).all()
        assert (excess.argmin(1) == along).all()


@torch.inference_mode()
def test_energies_of_samples_taken_together_are_their_mean_and_uniform_light_does_not_count() -> None:
    both = torch.cat((photo(0), photo(1) * 0.3))
    apart = OrientedEnergies()(both)
    assert apart.shape == (2, BANDS)
    torch.testing.assert_close(apart[1:], OrientedEnergies()(both[1:]))
    together = OrientedEnergies()(both, PooledStatistics(together=True))
    logs = [bands.reshape(-1, 4, 9)[..., :1] + 0.3 * bands.reshape(-1, 4, 9)[..., 1:] for bands in (apart, together)]
    torch.testing.assert_close(logs[1].exp(), _mean_energy(logs[0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(OrientedEnergies()(both + 0.2), apart, atol=1e-4, rtol=0)
