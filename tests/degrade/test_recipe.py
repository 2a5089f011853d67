"""Degradations: the promises that training, calibration and evaluation rely on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clusir.degrade.optics import disk_kernel, filter_image, gaussian_kernel, line_kernel
from clusir.degrade.recipe import FAMILIES, KINDS, PRESETS, Recipe, degrade, degrade_mixture, draw_recipe, draw_step
from clusir.degrade.sensor import add_poisson_gaussian_noise, quantise
from clusir.degrade.weather import add_haze, add_rain, depth_map
from clusir.errors import UsageError
from clusir.quality.metrics import psnr


def scene(height: int = 96, width: int = 80, seed: int = 0) -> np.ndarray:
    """A picture with flat areas, edges and texture, inside 0.1..0.9."""
    y, x = np.mgrid[:height, :width]
    base = 0.5 + 0.3 * np.sin(x / 7)[..., None] * np.array([1.0, 0.8, 0.6])
    base[height // 3 : height // 2, width // 4 : width // 2] = (0.8, 0.2, 0.3)
    texture = np.random.default_rng(seed).normal(0, 0.02, (height, width, 1)) * (y > height / 2)[..., None]
    return np.clip(base + texture, 0.1, 0.9).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_returns_an_eight_bit_picture_of_the_same_shape_and_leaves_its_input_alone(kind: str) -> None:
    image = scene()
    before = image.copy()
    out = degrade(image, kind, 0.5, np.random.default_rng(1))
    assert out.shape == image.shape
    assert out.dtype == np.float32
    np.testing.assert_array_equal(image, before)
    np.testing.assert_allclose(out * 255, np.rint(out * 255), atol=1e-4)
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_severity_is_more_degradation(kind: str) -> None:
    image = scene()

    def quality(severity: float) -> float:
        return float(np.mean([psnr(degrade(image, kind, severity, np.random.default_rng(s)), image) for s in range(5)]))

    mild, middle, strong = quality(0.0), quality(0.5), quality(1.0)
    assert mild > middle + 1 > strong + 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_generator_state_gives_one_result_and_another_gives_another(kind: str) -> None:
    image = scene()
    first = degrade(image, kind, 0.5, np.random.default_rng(3))
    np.testing.assert_array_equal(first, degrade(image, kind, 0.5, np.random.default_rng(3)))
    if kind not in ("jpeg", "gaussian_blur", "defocus_blur"):  # those draw nothing that shows
        assert not np.array_equal(first, degrade(image, kind, 0.5, np.random.default_rng(4)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (17, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_pictures_survive(kind: str, shape: tuple[int, int]) -> None:
    out = degrade(np.full((*shape, 3), 0.5, np.float32), kind, 1.0, np.random.default_rng(0))
    assert out.shape == (*shape, 3)
    assert np.isfinite(out).all()


def test_noise_in_the_middle_has_sigma_25() -> None:
    flat = np.full((128, 128, 3), 0.5, np.float32)
    out = degrade(flat, "noise", 0.5, np.random.default_rng(0))
    assert np.std(out - flat) * 255 == pytest.approx(25, rel=0.03)


def test_poisson_gaussian_noise_has_the_variance_of_its_law() -> None:
    rng = np.random.default_rng(0)
    for value in (0.1, 0.8):
        flat = np.full((256, 256, 3), value, np.float32)
        measured = np.var(add_poisson_gaussian_noise(flat, 60.0, 4.0, rng) - flat)
        assert measured == pytest.approx(value / 60 + (4 / 255) ** 2, rel=0.03)


@pytest.mark.parametrize(
    "kernel", [gaussian_kernel(1.5), disk_kernel(3.2), line_kernel(9, 30), line_kernel(21, 80, 0.3)]
)
def test_kernels_keep_the_mean_and_match_a_direct_convolution(kernel: np.ndarray) -> None:
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert kernel.min() >= 0
    image = scene(33, 41)
    radius = kernel.shape[0] // 2
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(0, 1))
    direct = np.einsum("hwcij,ij->hwc", windows, kernel[::-1, ::-1].astype(np.float64))
    np.testing.assert_allclose(filter_image(image, kernel), direct, atol=2e-6)


def test_a_horizontal_streak_is_horizontal_and_as_long_as_asked() -> None:
    kernel = line_kernel(9, 0)
    rows, columns = np.nonzero(kernel > 1e-6)
    assert set(rows) == {kernel.shape[0] // 2}
    assert columns.max() - columns.min() + 1 == 9


def test_rain_only_brightens_a_dark_scene_and_streaks_follow_the_angle() -> None:
    dark = np.full((128, 128, 3), 0.2, np.float32)
    rain = add_rain(dark, 0.01, 20, 0.0, 0.8, np.random.default_rng(0))[..., 0]
    assert rain.min() >= 0.2 - 1e-5
    assert rain.max() > 0.6
    vertical = np.abs(np.diff(rain, axis=0)).mean()
    assert np.abs(np.diff(rain, axis=1)).mean() > 2 * vertical


def test_haze_obeys_koschmieder_for_its_depth() -> None:
    image, airlight = scene(), (0.9, 0.85, 0.8)
    hazy = add_haze(image, 1.2, airlight, np.random.default_rng(5))
    transmission = np.exp(-1.2 * depth_map(*image.shape[:2], np.random.default_rng(5)))[..., None]
    np.testing.assert_allclose(hazy, image * transmission + np.array(airlight) * (1 - transmission), atol=1e-5)
    assert depth_map(300, 200, np.random.default_rng(0)).min() >= 0.1


def test_a_recipe_replays_the_same_noise_on_another_photo() -> None:
    first, second = np.full((64, 64, 3), 0.4, np.float32), np.full((64, 64, 3), 0.6, np.float32)
    recipe = Recipe((draw_step("noise", 0.3, np.random.default_rng(0)),), seed=9)
    np.testing.assert_allclose(recipe.apply(first) - first, recipe.apply(second) - second, atol=1.1 / 255)
    other = Recipe(recipe.steps, seed=10)
    assert not np.array_equal(recipe.apply(first), other.apply(first))


def test_a_mixture_returns_the_recipe_that_made_it() -> None:
    image = scene()
    out, recipe = degrade_mixture(image, np.random.default_rng(2))
    assert 2 <= len(recipe.steps) <= 3
    np.testing.assert_array_equal(out, recipe.apply(image))
    assert json.loads(json.dumps(recipe.to_dict()))["steps"][0]["kind"] == recipe.kinds[0]


def test_mixtures_are_in_physical_order_and_take_one_kind_of_a_family() -> None:
    order = ["haze", "rain", "blur", "low_light", "noise", "jpeg"]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        families = [FAMILIES[kind] for kind in draw_recipe(rng).kinds]
        assert families == sorted(set(families), key=order.index)
        seen |= set(families)
    assert seen == set(order)


def test_weights_bias_the_draw_and_zero_excludes() -> None:
    rng = np.random.default_rng(0)
    kinds = [draw_recipe(rng, ("noise", "jpeg", "rain"), 1, (8, 1, 0)).kinds[0] for _ in range(400)]
    assert "rain" not in kinds
    assert kinds.count("noise") > 5 * kinds.count("jpeg")


def test_no_step_is_an_undamaged_photo() -> None:
    image = quantise(scene())
    recipe = draw_recipe(np.random.default_rng(0), count=0)
    assert recipe.name == "clean"
    np.testing.assert_array_equal(recipe.apply(image), image)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_what_they_say(name: str) -> None:
    recipe = PRESETS[name](np.random.default_rng(0))
    degraded = recipe.apply(quantise(scene()))
    if name == "clean":
        np.testing.assert_array_equal(degraded, quantise(scene()))
        return
    assert psnr(degraded, quantise(scene())) < 40
    number = {"noise 25": ("sigma", 25), "jpeg 10": ("quality", 10), "motion blur 9": ("length_px", 9)}.get(name)
    if number:
        assert recipe.steps[0].parameters[number[0]] == number[1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda rng: degrade(scene(), "snow", 0.5, rng), "unknown degradation 'snow'"),
        (lambda rng: degrade(scene(), "noise", 1.5, rng), "severity 1.5"),
        (lambda rng: degrade(scene(), "noise", float("nan"), rng), "severity nan"),
        (lambda rng: degrade(scene()[..., 0], "noise", 0.5, rng), "96x80"),
        (lambda rng: draw_recipe(rng, ("noise", "poisson_gaussian"), 2), "1 families"),
        (lambda rng: draw_recipe(rng, ("fog",)), "unknown degradation 'fog'"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(call, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        call(np.random.default_rng(0))
    assert "\n" not in str(caught.value)
