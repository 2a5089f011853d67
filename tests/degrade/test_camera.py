"""A camera from light to picture: what its noise looks like, what stays without it, and what a recipe leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from clusir.degrade.camera import BILINEAR, FULL_COLOUR, MALVAR, Development, demosaic, develop, expose, mosaic
from clusir.degrade.light import bend_tone, straighten_tone, to_light, to_stored
from clusir.degrade.recipe import ALL_KINDS, FAMILIES, FAMILY_NAMES, PRESETS, Recipe, degrade, draw_step
from clusir.degrade.weather import add_haze_in_light, depth_map

PINNED = {"noise 25": 6151.718, "haze": 8753.949, "rain": 6503.898}


def grey(value: float, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Waves of several directions and colours."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    waves = [np.sin(x / (3 + k) + k) * np.cos(y / (4 - k)) for k in range(3)]
    return (0.5 + 0.35 * np.stack(waves, -1)).astype(np.float32)


def test_light_and_stored_values_are_inverse_and_meet_known_points() -> None:
    x = np.linspace(0, 1, 256, dtype=np.float32)
    assert np.abs(to_stored(to_light(x)) - x).max() < 1e-6
    assert float(to_light(np.float32([0.5]))[0]) == pytest.approx(0.21404, abs=1e-4)  # IEC 61966-2-1
    for contrast in (0.0, 0.4, 1.0):
        assert np.abs(straighten_tone(bend_tone(x, contrast), contrast) - x).max() < 2e-3


def test_sensor_noise_has_its_variance_in_light_and_is_largest_in_the_shadows_of_the_picture() -> None:
    how = Development(a=1e-3, b=1e-6, red_gain=1.0, blue_gain=1.0, demosaic=FULL_COLOUR)
    deviation = []
    for value in (0.1, 0.5, 0.9):
        noisy = develop(grey(value, 128), how, np.random.default_rng(0))
        light = float(to_light(np.float32([value]))[0])
        assert np.var(to_light(noisy) - light) == pytest.approx(1e-3 * light + 1e-6, rel=0.08)
        deviation.append(float(noisy.std()))
    assert deviation[0] > deviation[1] > deviation[2]


def test_demosaicking_is_exact_on_flat_colour_and_makes_noise_correlated() -> None:
    colours = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (16, 16, 3))
    for row in (0, 1):
        for column in (0, 1):
            for corrected in (True, False):
                found = demosaic(mosaic(colours, row, column), row, column, corrected=corrected)
                assert np.abs(found - colours).max() < 1e-6
    noise = develop(grey(0.5, 128), Development(1e-3, 0.0), np.random.default_rng(0)) - 0.5
    white = develop(grey(0.5, 128), Development(1e-3, 0.0, demosaic=FULL_COLOUR), np.random.default_rng(0)) - 0.5

    def neighbours(x: np.ndarray) -> float:
        return float(np.corrcoef(x[:, :-1, 0].ravel(), x[:, 1:, 0].ravel())[0, 1])

    assert neighbours(noise) > 0.3 > 0.05 > abs(neighbours(white))


def test_demosaicking_with_gradients_is_closer_to_a_scene(scene: np.ndarray) -> None:
    alike = np.broadcast_to(scene[..., :1], scene.shape)  # the colours of photos rise and fall together
    errors = [float(np.square(demosaic(mosaic(alike, 0, 1), 0, 1, corrected=c) - alike).mean()) for c in (True, False)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("how", [Development(1e-3, 1e-6, demosaic=d, shrink=s) for d in (0, 1, 2) for s in (1, 2)])
def test_the_picture_without_noise_is_the_mean_of_those_with_it(scene: np.ndarray, how: Development) -> None:
    assert {FULL_COLOUR, BILINEAR, MALVAR} == {0, 1, 2}
    silent = develop(scene, how, np.random.default_rng(7), noisy=False)
    place = np.random.default_rng(7).integers(2, size=2)  # of the mosaic: the same for all
    taken = []
    for k in range(200):
        rng = np.random.default_rng(k)
        if (rng.integers(2, size=2) == place).all():
            taken.append(develop(scene, how, np.random.default_rng(k)))
    assert len(taken) > 30
    assert abs(float((np.mean(taken, 0) - silent).mean())) < 1e-3
    assert np.sqrt(np.square(np.mean(taken, 0) - silent).mean()) < 0.3 * np.sqrt(np.square(taken[0] - silent).mean())


def test_a_short_exposure_is_less_light_and_its_noise_can_be_left_out() -> None:
    dark = expose(grey(0.8), 0.25, 1e-4, 1e-7, np.random.default_rng(0), noisy=False)
    assert float(to_light(dark).mean()) == pytest.approx(0.25 * float(to_light(grey(0.8)).mean()), rel=1e-4)
    assert float(dark.std()) < 1e-6 < float(expose(grey(0.8), 0.25, 1e-4, 1e-7, np.random.default_rng(0)).std())


def test_haze_adds_light_and_depth_grows_with_large_pictures() -> None:
    hazy = add_haze_in_light(grey(0.1), 1.0, (0.9, 0.9, 0.9), np.random.default_rng(0))
    assert 0.1 < hazy.min() <= hazy.max() < 0.9
    for height, width in ((321, 481), (1000, 1500), (1500, 2000)):
        near = [float((depth_map(height, width, np.random.default_rng(s)) <= 0.1).mean()) for s in range(4)]
        assert np.mean(near) < 0.05, (height, width)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_family_that_is_left_out_leaves_the_rest_the_same(kind: str, scene: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    first = draw_step(kind, 0.6, rng)
    other = draw_step("rain" if FAMILIES[kind] != "rain" else "haze", 0.6, rng)
    recipe = Recipe((first, other), 5)
    rest = Recipe((other,), 5)
    kept = recipe.apply(scene, [FAMILIES[other.kind]])
    if kind == "camera_noise":  # a perfect denoiser's picture: the camera's, without its noise
        assert np.abs(kept - recipe.apply(scene)).max() > 0
    elif not recipe.families - {FAMILIES[other.kind]} & {"noise", "low_light", "haze", "rain"}:
        assert np.array_equal(kept, rest.apply(scene))  # it draws no numbers
    assert np.array_equal(recipe.apply(scene), recipe.apply(scene, FAMILY_NAMES))
    nothing = recipe.apply(scene, [])
    if kind != "camera_noise":
        assert np.abs(nothing - scene).max() <= 0.5 / 255 + 1e-6
    # The field of the other step does not depend on whether this family was kept.
    a, b = recipe.apply(grey(0.5), [FAMILIES[other.kind]]), recipe.apply(grey(0.5), FAMILY_NAMES)
    if kind in ("noise", "poisson_gaussian") and other.kind == "rain":
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.2


def test_noise_can_be_taken_out_of_a_dark_picture(scene: np.ndarray) -> None:
    for kind in ("low_light", "underexposure"):
        recipe = Recipe((draw_step(kind, 0.5, np.random.default_rng(0)),), 1)
        assert recipe.families == {"low_light", "noise"}
        dark, silent = recipe.apply(scene), recipe.apply(scene, ["low_light"])
        assert np.abs(dark - silent).max() > 0
        assert abs(float((dark - silent).mean())) < 1 / 255
        assert silent.mean() < 0.8 * scene.mean()
        assert np.abs(recipe.apply(scene, ["noise"]) - scene).max() <= 0.5 / 255 + 1e-6


def test_the_kinds_of_the_tables_draw_what_they_drew(scene: np.ndarray) -> None:
    """Every published figure of a preset rests on these fields."""
    sums = {name: float(PRESETS[name](np.random.default_rng(0)).apply(scene).sum()) for name in ("noise 25", "haze")}
    assert sums["noise 25"] == pytest.approx(PINNED["noise 25"], abs=0.02)
    assert sums["haze"] == pytest.approx(PINNED["haze"], abs=0.02)
    assert degrade(scene, "rain", 0.5, np.random.default_rng(0)).sum() == pytest.approx(PINNED["rain"], abs=0.02)
