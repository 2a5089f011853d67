"""Degradations on demand, which training, calibration, tests and evaluation share.

Three layers. The functions of this folder take physical parameters. A *kind* (:mod:`clusir.degrade.kinds`) names one
of them and maps a severity in 0..1 to parameters. A :class:`Recipe` is a list of kinds with their parameters drawn, and
a seed: it does the same to any photo, can leave families of kinds out of it, and can be written to JSON.

Pictures are HxWx3 float32 arrays in 0..1; results are clipped and hold only the 256 values of an 8-bit file. numpy and
Pillow only: no torch, no scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.kinds import ALL_KINDS, FAMILIES, FAMILY_NAMES, KINDS, REGISTRY
from clusir.degrade.sensor import quantise
from clusir.errors import UsageError

__all__ = [
    "ALL_KINDS",
    "CAMERA_PRESETS",
    "FAMILIES",
    "FAMILY_NAMES",
    "KINDS",
    "PRESETS",
    "Recipe",
    "Step",
    "degrade",
    "degrade_mixture",
    "draw_recipe",
    "draw_step",
]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One kind with its parameters drawn. ``severity`` is what they were drawn from (nan: they were given)."""

    kind: str
    parameters: Mapping[str, float]
    severity: float = float("nan")


@dataclass(frozen=True)
class Recipe:
    """Degradation that can be done again: the same steps with the same random fields, on any photo.

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

    @property
    def families(self) -> frozenset[str]:
        """The families that :meth:`apply` brings into a picture; a short exposure brings noise too."""
        return frozenset(family for step in self.steps for family in REGISTRY[step.kind].brings)

    def apply(self, image: Array, kept: Collection[str] = FAMILY_NAMES) -> Array:
        """The degraded HxWx3 picture, clipped and quantised to 8 bit; the argument is left as it is.

        Only the families in ``kept`` degrade it: all others are as if mended perfectly, and the random fields of what
        is kept are the same as without that. A camera's picture without its noise is as soft as the camera's.
        """
        _check_image(image)
        rng = np.random.default_rng(self.seed)
        keep = frozenset(kept)
        for step in self.steps:
            image = np.clip(REGISTRY[step.kind].apply(image, step.parameters, rng, keep), 0.0, 1.0)
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
    if kind not in REGISTRY:
        raise UsageError(f"unknown degradation {kind!r}; choose one of {', '.join(ALL_KINDS)}")
    if not 0.0 <= severity <= 1.0:
        raise UsageError(f"severity {severity} is not within 0..1")
    return Step(kind, REGISTRY[kind].draw(float(severity), rng), float(severity))


def draw_recipe(
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    count: int | None = None,
    weights: Sequence[float] | None = None,
    severities: Mapping[str, tuple[float, float]] | None = None,
) -> Recipe:
    """A random recipe: ``count`` kinds out of ``kinds`` (default: two or three of KINDS), severities uniform in 0..1.

    ``weights`` (one per kind, not negative) bias the choice; ``severities`` narrows the range (lowest, highest) of the
    kinds that it names. At most one kind of each family is taken, and the steps come in the order in which light meets
    them: air, lens, exposure, sensor, file. Raises UsageError where ``kinds`` has fewer families than ``count``.
    """
    pool = list(KINDS if kinds is None else kinds)
    unknown = [kind for kind in pool if kind not in REGISTRY]
    if unknown:
        raise UsageError(f"unknown degradation {unknown[0]!r}; choose from {', '.join(ALL_KINDS)}")
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
    chosen.sort(key=lambda kind: REGISTRY[kind].order)
    ranges = severities or {}
    steps = tuple(draw_step(kind, float(rng.uniform(*ranges.get(kind, (0.0, 1.0)))), rng) for kind in chosen)
    return Recipe(steps, int(rng.integers(2**63)))


def degrade(image: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
    """One kind of degradation at one severity in 0..1: HxWx3 float32 in, the same shape out, clipped and 8-bit
    quantised.

    Raises UsageError for an unknown kind, a severity outside 0..1, or an array that is not HxWx3.
    """
    step = draw_step(kind, severity, rng)
    return Recipe((step,), int(rng.integers(2**63))).apply(image)


def degrade_mixture(
    image: Array, rng: np.random.Generator, kinds: Sequence[str] | None = None, count: int | None = None
) -> tuple[Array, Recipe]:
    """Two or three kinds of degradation (or ``count``) at random severities, and the recipe that does the same
    again."""
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


def _iso(a: float, b: float) -> Callable[[np.random.Generator], Recipe]:
    """A camera of full resolution at a given noise, gradient-corrected demosaicking, nothing mended, no file."""
    plain = {"red_gain": 2.2, "blue_gain": 1.9, "contrast": 0.0, "demosaic": 2.0, "denoise": 0.0, "sharpen": 0.0}
    return _preset(("camera_noise", {"a": a, "b": b, "shrink": 1.0, **plain}))


CAMERA_PRESETS: dict[str, Callable[[np.random.Generator], Recipe]] = {
    "camera ISO 6400": _iso(1.2e-4, 5e-7),
    "camera ISO 25600": _iso(3.4e-4, 1.6e-6),
    "camera sigma 5": _iso(5e-4, 2e-6),
    "camera sigma 10": _iso(2.4e-3, 1e-5),
}
"""Noise through a camera: medians of published profiles at two ISOs, and two strengths of about 5 and 10 levels."""
