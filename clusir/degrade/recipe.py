"""Damage on demand: the degradations that training, calibration, tests and evaluation share.

Three layers. The functions of ``degrade_optics``, ``degrade_weather`` and ``degrade_sensor`` take physical parameters.
A *kind* names one of them and maps a severity in 0..1 to parameters. A :class:`Recipe` is a list of kinds with their
parameters drawn, and a seed: it does the same damage to any photo, and can be written to JSON.

Pictures are HxWx3 float32 arrays in 0..1; results are clipped and hold only the 256 values of an 8-bit file. numpy and
Pillow only: no torch, no scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.optics import disk_kernel, filter_image, gaussian_kernel, line_kernel
from clusir.degrade.sensor import add_gaussian_noise, add_poisson_gaussian_noise, compress_jpeg, darken, quantise
from clusir.degrade.weather import add_haze, add_rain
from clusir.errors import UsageError

__all__ = ["FAMILIES", "KINDS", "PRESETS", "Recipe", "Step", "degrade", "degrade_mixture", "draw_recipe", "draw_step"]

Array = NDArray[np.float32]
Parameters = Mapping[str, float]


@dataclass(frozen=True)
class _Kind:
    """How one kind is drawn and done. Kinds of one ``family`` exclude each other in a mixture; ``order``: physical."""

    family: str
    order: int
    draw: Callable[[float, np.random.Generator], dict[str, float]]
    apply: Callable[[Array, Parameters, np.random.Generator], Array]


def _draw_haze(severity: float, rng: np.random.Generator) -> dict[str, float]:
    grey = rng.uniform(0.75, 0.98)
    tint = rng.uniform(-0.03, 0.03, 2)
    return {"beta": 0.35 + 1.3 * severity, "red": grey + tint[0], "green": grey, "blue": grey + tint[1]}


def _draw_rain(severity: float, rng: np.random.Generator) -> dict[str, float]:
    return {
        "density": 0.002 + 0.014 * severity,
        "length_px": 9.0 + 16.0 * severity + rng.uniform(0.0, 8.0),
        "angle_deg": rng.uniform(-35.0, 35.0),
        "strength": 0.35 + 0.4 * severity + rng.uniform(0.0, 0.15),
    }


def _draw_motion(severity: float, rng: np.random.Generator) -> dict[str, float]:
    return {"length_px": 3.0 + 16.0 * severity, "angle_deg": rng.uniform(0.0, 180.0), "bend": rng.uniform(-0.3, 0.3)}


_REGISTRY: dict[str, _Kind] = {
    "noise": _Kind(
        "noise", 4,
        # The exponent puts sigma 25 in the middle of 5..55.
        lambda s, rng: {"sigma": 5.0 + 50.0 * s**1.3219},
        lambda x, p, rng: add_gaussian_noise(x, p["sigma"], rng),
    ),
    "poisson_gaussian": _Kind(
        "noise", 4,
        lambda s, rng: {"peak": 1000.0 * 0.03**s, "read_sigma": 1.0 + 9.0 * s},
        lambda x, p, rng: add_poisson_gaussian_noise(x, p["peak"], p["read_sigma"], rng),
    ),
    "jpeg": _Kind(
        "jpeg", 5,
        lambda s, rng: {"quality": float(round(60.0 - 55.0 * s)), "subsampling": float(rng.choice((2, 2, 2, 0)))},
        lambda x, p, rng: compress_jpeg(x, int(p["quality"]), int(p["subsampling"])),
    ),
    "gaussian_blur": _Kind(
        "blur", 0,
        lambda s, rng: {"sigma_px": 0.5 + 2.5 * s},
        lambda x, p, rng: filter_image(x, gaussian_kernel(p["sigma_px"])),
    ),
    "motion_blur": _Kind(
        "blur", 0, _draw_motion,
        lambda x, p, rng: filter_image(x, line_kernel(p["length_px"], p["angle_deg"], p["bend"])),
    ),
    "defocus_blur": _Kind(
        "blur", 0,
        lambda s, rng: {"radius_px": 0.8 + 3.7 * s},
        lambda x, p, rng: filter_image(x, disk_kernel(p["radius_px"])),
    ),
    "rain": _Kind(
        "rain", 2, _draw_rain,
        lambda x, p, rng: add_rain(x, p["density"], p["length_px"], p["angle_deg"], p["strength"], rng),
    ),
    "haze": _Kind(
        "haze", 1, _draw_haze,
        lambda x, p, rng: add_haze(x, p["beta"], (p["red"], p["green"], p["blue"]), rng),
    ),
    "low_light": _Kind(
        "low_light", 3,
        lambda s, rng: {"gain": 0.75 - 0.55 * s, "gamma": 1.0 + 0.8 * s, "noise_sigma": 0.5 + 3.0 * s},
        lambda x, p, rng: darken(x, p["gain"], p["gamma"], p["noise_sigma"], rng),
    ),
}  # fmt: skip

KINDS: tuple[str, ...] = tuple(_REGISTRY)
"""The names of all degradations."""

FAMILIES: dict[str, str] = {name: kind.family for name, kind in _REGISTRY.items()}
"""Kind -> what a person would call it: noise, jpeg, blur, rain, haze or low_light."""


@dataclass(frozen=True)
class Step:
    """One kind with its parameters drawn. ``severity`` is what they were drawn from (nan: they were given)."""

    kind: str
    parameters: Mapping[str, float]
    severity: float = float("nan")


@dataclass(frozen=True)
class Recipe:
    """Damage that can be done again: the same steps with the same random fields, on any photo.

    Two photos of one shape get the very same noise, streaks and depth. No step at all is an undamaged photo.
    """

    steps: tuple[Step, ...]
    seed: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds in the order in which they are done."""
        return tuple(step.kind for step in self.steps)

    @property
    def name(self) -> str:
        """For tables: kinds joined by ``+``, or ``clean``."""
        return "+".join(self.kinds) or "clean"

    def without(self, family: str) -> Recipe:
        """The same damage less one family of kinds. What is left draws the same random fields if that family draws
        none (blur does not)."""
        return Recipe(tuple(step for step in self.steps if FAMILIES[step.kind] != family), self.seed)

    def apply(self, image: Array) -> Array:
        """The damaged HxWx3 picture, clipped and quantised to 8 bit; the argument is left as it is."""
        _check_image(image)
        rng = np.random.default_rng(self.seed)
        for step in self.steps:
            image = np.clip(_REGISTRY[step.kind].apply(image, step.parameters, rng), 0.0, 1.0)
        return quantise(image).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        steps = [
            {"kind": s.kind, "severity": None if s.severity != s.severity else s.severity, **dict(s.parameters)}
            for s in self.steps
        ]
        return {"seed": self.seed, "steps": steps}


def draw_step(kind: str, severity: float, rng: np.random.Generator) -> Step:
    """``kind`` at ``severity`` in 0..1 (0.5: the middle of its range); what else it needs is drawn from ``rng``.

    Raises UsageError for an unknown kind or a severity outside 0..1.
    """
    if kind not in _REGISTRY:
        raise UsageError(f"unknown degradation {kind!r}; choose one of {', '.join(KINDS)}")
    if not 0.0 <= severity <= 1.0:
        raise UsageError(f"severity {severity} is not within 0..1")
    return Step(kind, _REGISTRY[kind].draw(float(severity), rng), float(severity))


def draw_recipe(
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    count: int | None = None,
    weights: Sequence[float] | None = None,
    severities: Mapping[str, tuple[float, float]] | None = None,
) -> Recipe:
    """A random recipe: ``count`` kinds out of ``kinds`` (default: two or three of all), severities uniform in 0..1.

    ``weights`` (one per kind, not negative) bias the choice; ``severities`` narrows the range (lowest, highest) of the
    kinds that it names. At most one kind of each family is taken, and the steps
    come in physical order: lens, air, exposure, sensor, file. Raises UsageError where ``kinds`` has fewer families than
    ``count``.
    """
    pool = list(KINDS if kinds is None else kinds)
    unknown = [kind for kind in pool if kind not in _REGISTRY]
    if unknown:
        raise UsageError(f"unknown degradation {unknown[0]!r}; choose from {', '.join(KINDS)}")
    share = dict(zip(pool, np.ones(len(pool)) if weights is None else weights, strict=True))
    families = len({FAMILIES[kind] for kind in pool})
    wanted = min(int(rng.integers(2, 4)), families) if count is None else count
    if not 0 <= wanted <= families:
        raise UsageError(f"{wanted} degradations out of {len(pool)} kinds of {families} families; ask for fewer")
    chosen: list[str] = []
    while len(chosen) < wanted:
        rest = [kind for kind in pool if FAMILIES[kind] not in {FAMILIES[c] for c in chosen}]
        odds = np.array([share[kind] for kind in rest], np.float64)
        odds = odds / odds.sum() if odds.sum() > 0 else np.full(len(rest), 1.0 / len(rest))
        chosen.append(rest[int(rng.choice(len(rest), p=odds))])
    chosen.sort(key=lambda kind: _REGISTRY[kind].order)
    ranges = severities or {}
    steps = tuple(draw_step(kind, float(rng.uniform(*ranges.get(kind, (0.0, 1.0)))), rng) for kind in chosen)
    return Recipe(steps, int(rng.integers(2**63)))


def degrade(image: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
    """One kind of damage at one severity in 0..1: HxWx3 float32 in, the same shape out, clipped and 8-bit quantised.

    Raises UsageError for an unknown kind, a severity outside 0..1, or an array that is not HxWx3.
    """
    step = draw_step(kind, severity, rng)
    return Recipe((step,), int(rng.integers(2**63))).apply(image)


def degrade_mixture(
    image: Array, rng: np.random.Generator, kinds: Sequence[str] | None = None, count: int | None = None
) -> tuple[Array, Recipe]:
    """Two or three kinds of damage (or ``count``) at random severities, and the recipe that does the same again."""
    recipe = draw_recipe(rng, kinds, count)
    return recipe.apply(image), recipe


def _check_image(image: Array) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UsageError(f"a picture must be HxWx3, this array is {'x'.join(map(str, image.shape))}")


def _preset(*steps: tuple[str, dict[str, float]]) -> Callable[[np.random.Generator], Recipe]:
    """A recipe maker: given parameters are fixed, the rest is drawn at severity 0.5 for each picture."""

    def make(rng: np.random.Generator) -> Recipe:
        drawn = [Step(kind, {**draw_step(kind, 0.5, rng).parameters, **fixed}) for kind, fixed in steps]
        return Recipe(tuple(drawn), int(rng.integers(2**63)))

    return make


def _hazy(rng: np.random.Generator) -> Recipe:
    return Recipe((draw_step("haze", float(rng.uniform()), rng),), int(rng.integers(2**63)))


_JPEG = {"subsampling": 2.0}
_HEAVY_RAIN = {"density": 0.014, "strength": 0.8}
PRESETS: dict[str, Callable[[np.random.Generator], Recipe]] = {
    "noise 15": _preset(("noise", {"sigma": 15.0})),
    "noise 25": _preset(("noise", {"sigma": 25.0})),
    "noise 50": _preset(("noise", {"sigma": 50.0})),
    "jpeg 10": _preset(("jpeg", {"quality": 10.0, **_JPEG})),
    "jpeg 20": _preset(("jpeg", {"quality": 20.0, **_JPEG})),
    "jpeg 40": _preset(("jpeg", {"quality": 40.0, **_JPEG})),
    "rain heavy": _preset(("rain", _HEAVY_RAIN)),
    "haze": _hazy,
    "gaussian blur 1.5": _preset(("gaussian_blur", {"sigma_px": 1.5})),
    "motion blur 9": _preset(("motion_blur", {"length_px": 9.0, "bend": 0.0})),
    "low light": _preset(("low_light", {})),
    "noise 15 + jpeg 30": _preset(("noise", {"sigma": 15.0}), ("jpeg", {"quality": 30.0, **_JPEG})),
    "rain + haze": _preset(("haze", {}), ("rain", {})),
    "blur + noise": _preset(("gaussian_blur", {"sigma_px": 1.5}), ("noise", {"sigma": 15.0})),
    "clean": lambda rng: Recipe((), int(rng.integers(2**63))),
}
"""The rows of the quality table: name -> a function that draws the recipe of one picture."""
