"""The kinds of degradation: how each is drawn from a severity, what it does, and which family a person would call it.

Kinds of two worlds. The nine of :data:`KINDS` work on stored values, as the sets do on which restoration papers
compare; the others of :data:`ALL_KINDS` work in light, through a camera. numpy and Pillow only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.camera import BILINEAR, FULL_COLOUR, MALVAR, Development, develop, expose
from clusir.degrade.optics import disk_kernel, filter_image, gaussian_kernel, line_kernel
from clusir.degrade.sensor import add_gaussian_noise, add_poisson_gaussian_noise, compress_jpeg, darken
from clusir.degrade.weather import add_haze, add_haze_in_light, add_rain

__all__ = ["ALL_KINDS", "FAMILIES", "FAMILY_NAMES", "KINDS", "REGISTRY", "Kind"]

Array = NDArray[np.float32]
Parameters = Mapping[str, float]
Apply = Callable[[Array, Parameters, np.random.Generator, frozenset[str]], Array]

FAMILY_NAMES: tuple[str, ...] = ("noise", "jpeg", "blur", "rain", "haze", "low_light")
"""The families, in the order of every vector of permissions."""


@dataclass(frozen=True)
class Kind:
    """How one kind is drawn and done. Kinds of one ``family`` exclude each other in a mixture; ``order``: in which
    light meets them. ``apply`` is told the families that it shall keep, and draws the same whatever they are;
    ``brings``: all families of what it does."""

    family: str
    order: int
    draw: Callable[[float, np.random.Generator], dict[str, float]]
    apply: Apply
    brings: tuple[str, ...]


def _kind(
    family: str,
    order: int,
    draw: Callable[[float, np.random.Generator], dict[str, float]],
    degrade: Callable[[Array, Parameters, np.random.Generator], Array],
    *,
    random: bool = True,
) -> Kind:
    """A kind that leaves the picture alone where its family is not kept; ``random``: ``degrade`` draws numbers."""

    def apply(image: Array, p: Parameters, rng: np.random.Generator, kept: frozenset[str]) -> Array:
        if family in kept:
            return degrade(image, p, rng)
        if random:
            degrade(image, p, rng)  # for its numbers: what follows draws the same
        return image

    return Kind(family, order, draw, apply, (family,))


_AIR, _RAIN, _LENS, _EXPOSURE, _SENSOR, _FILE = range(6)


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


def _sensor_noise(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """a from 2e-6 to 1e-2, log-uniform in the severity: the span of 8,048 published camera profiles from ISO 100
    (median 3e-6) over 6400 (1.2e-4) to 25600 (3.4e-4) and beyond. b / a is 0.003 to 0.006 in their medians."""
    a = 2e-6 * 5000.0**severity
    return {"a": a, "b": a * 4e-3 * float(np.exp(rng.normal(0.0, 0.8)))}


def _draw_camera(severity: float, rng: np.random.Generator) -> dict[str, float]:
    shrinks = rng.random() < 0.15
    return _sensor_noise(severity, rng) | {
        "red_gain": 2.2 * float(np.exp(rng.normal(0.0, 0.15))),
        "blue_gain": 1.9 * float(np.exp(rng.normal(0.0, 0.15))),
        "contrast": float(rng.choice((0.0, 1.0)) * rng.uniform()),
        "demosaic": float(rng.choice((FULL_COLOUR, BILINEAR, MALVAR, MALVAR, MALVAR))),
        "denoise": float(rng.choice((0.0, 0.0, 1.0)) * rng.uniform()),
        "sharpen": float(rng.choice((0.0, 1.0)) * rng.uniform(0.0, 0.8)),
        "shrink": 2.0 if shrinks else 1.0,
    }


def _develop(image: Array, p: Parameters, rng: np.random.Generator, kept: frozenset[str]) -> Array:
    how = Development(
        p["a"], p["b"], p["red_gain"], p["blue_gain"], p["contrast"], int(p["demosaic"]), p["denoise"], p["sharpen"],
        int(p["shrink"]),
    )  # fmt: skip
    return develop(image, how, rng, noisy="noise" in kept)


def _draw_exposure(severity: float, rng: np.random.Generator) -> dict[str, float]:
    # One to four stops too short; what is that dark was taken at ISO 400 to 25600.
    return {"gain": 0.5 * 0.125**severity} | _sensor_noise(float(rng.uniform(0.15, 0.6)), rng)


def _darken(image: Array, p: Parameters, rng: np.random.Generator, kept: frozenset[str]) -> Array:
    if "noise" in kept:
        dark = darken(image, p["gain"], p["gamma"], p["noise_sigma"], rng)
    else:
        rng.standard_normal(image.shape, dtype=np.float32)
        dark = darken(image, p["gain"], p["gamma"], 0.0, np.random.default_rng(0))
    return dark if "low_light" in kept else image


def _expose(image: Array, p: Parameters, rng: np.random.Generator, kept: frozenset[str]) -> Array:
    dark = expose(image, p["gain"], p["a"], p["b"], rng, noisy="noise" in kept)
    return dark if "low_light" in kept else image


def _compress(image: Array, p: Parameters, rng: np.random.Generator) -> Array:
    for _ in range(int(p.get("times", 1.0))):
        image = compress_jpeg(image, int(p["quality"]), int(p["subsampling"]))
    return image


_STORED: dict[str, Kind] = {
    "noise": _kind(
        "noise", _SENSOR,
        # The exponent puts sigma 25 in the middle of 5..55.
        lambda s, rng: {"sigma": 5.0 + 50.0 * s**1.3219},
        lambda x, p, rng: add_gaussian_noise(x, p["sigma"], rng),
    ),
    "poisson_gaussian": _kind(
        "noise", _SENSOR,
        lambda s, rng: {"peak": 1000.0 * 0.03**s, "read_sigma": 1.0 + 9.0 * s},
        lambda x, p, rng: add_poisson_gaussian_noise(x, p["peak"], p["read_sigma"], rng),
    ),
    "jpeg": _kind(
        "jpeg", _FILE,
        lambda s, rng: {"quality": float(round(60.0 - 55.0 * s)), "subsampling": float(rng.choice((2, 2, 2, 0)))},
        _compress, random=False,
    ),
    "gaussian_blur": _kind(
        "blur", _LENS,
        lambda s, rng: {"sigma_px": 0.5 + 2.5 * s},
        lambda x, p, rng: filter_image(x, gaussian_kernel(p["sigma_px"])), random=False,
    ),
    "motion_blur": _kind(
        "blur", _LENS, _draw_motion,
        lambda x, p, rng: filter_image(x, line_kernel(p["length_px"], p["angle_deg"], p["bend"])), random=False,
    ),
    "defocus_blur": _kind(
        "blur", _LENS,
        lambda s, rng: {"radius_px": 0.8 + 3.7 * s},
        lambda x, p, rng: filter_image(x, disk_kernel(p["radius_px"])), random=False,
    ),
    "rain": _kind(
        "rain", _RAIN, _draw_rain,
        lambda x, p, rng: add_rain(x, p["density"], p["length_px"], p["angle_deg"], p["strength"], rng),
    ),
    "haze": _kind(
        "haze", _AIR, _draw_haze,
        lambda x, p, rng: add_haze(x, p["beta"], (p["red"], p["green"], p["blue"]), rng),
    ),
    "low_light": Kind(
        "low_light", _EXPOSURE,
        lambda s, rng: {"gain": 0.75 - 0.55 * s, "gamma": 1.0 + 0.8 * s, "noise_sigma": 0.5 + 3.0 * s},
        _darken, ("low_light", "noise"),
    ),
}  # fmt: skip

_LIGHT: dict[str, Kind] = {
    "camera_noise": Kind("noise", _SENSOR, _draw_camera, _develop, ("noise",)),
    "camera_jpeg": _kind(
        "jpeg", _FILE,
        lambda s, rng: {
            "quality": float(round(98.0 - 28.0 * s)), "subsampling": 2.0, "times": float(rng.choice((1, 1, 2)))
        },
        _compress, random=False,
    ),
    "scene_haze": _kind(
        "haze", _AIR, _draw_haze,
        lambda x, p, rng: add_haze_in_light(x, p["beta"], (p["red"], p["green"], p["blue"]), rng),
    ),
    "underexposure": Kind("low_light", _EXPOSURE, _draw_exposure, _expose, ("low_light", "noise")),
}  # fmt: skip

REGISTRY: dict[str, Kind] = _STORED | _LIGHT

KINDS: tuple[str, ...] = tuple(_STORED)
"""The kinds on stored values: what tables, calibration sets and cluster reports hold."""

ALL_KINDS: tuple[str, ...] = tuple(REGISTRY)
"""Those, and the kinds in light: sensor noise through a camera, its JPEG files, haze, exposures too short."""

FAMILIES: dict[str, str] = {name: kind.family for name, kind in REGISTRY.items()}
"""Kind -> its family, one of ``FAMILY_NAMES``."""
