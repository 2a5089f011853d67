"""A camera from light to picture: sensor noise, colour mosaic, demosaicking, white balance, tone, what it mends itself.

Pictures are HxWx3 float32 arrays in 0..1, light is linear. numpy only. :func:`develop` is the whole way; the numbers of
its noise follow published sensor profiles, the order of its steps that of Brooks et al., "Unprocessing images for
learned raw denoising" (CVPR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.light import bend_tone, straighten_tone, to_light, to_stored

__all__ = [
    "BILINEAR",
    "FULL_COLOUR",
    "MALVAR",
    "Development",
    "add_sensor_noise",
    "demosaic",
    "develop",
    "expose",
    "mosaic",
]

Array = NDArray[np.float32]

FULL_COLOUR, BILINEAR, MALVAR = 0, 1, 2
"""How a pixel gets its three colours: it has them, the mean of neighbours, or gradient-corrected neighbours."""


@dataclass(frozen=True)
class Development:
    """What a camera does to a picture. ``a``, ``b``: the green channel's noise variance is a * x + b at linear light x
    in 0..1. ``red_gain``, ``blue_gain``: white balance, by which these channels' noise grows too. ``contrast``: of the
    tone curve. ``demosaic``: one of FULL_COLOUR, BILINEAR, MALVAR. ``denoise`` and ``sharpen``, 0..1: the camera's own.
    ``shrink``: pixels of the sensor to a pixel of the picture along each axis, 1 or 2."""

    a: float
    b: float
    red_gain: float = 2.2
    blue_gain: float = 1.9
    contrast: float = 0.0
    demosaic: int = MALVAR
    denoise: float = 0.0
    sharpen: float = 0.0
    shrink: int = 1


def add_sensor_noise(raw: Array, a: float, b: float, rng: np.random.Generator) -> Array:
    """Linear raw values plus photon and read noise of variance a * x + b; unclipped.

    The Poisson-Gaussian model of Foi et al. (IEEE TIP 2008), its Poisson law replaced by a Gaussian of the same mean
    and variance. Its standard deviation, seen through the tone curve, is largest in the shadows.
    """
    deviation = np.sqrt(np.float32(a) * np.clip(raw, 0.0, 1.0) + np.float32(b))
    noisy: Array = raw + deviation * rng.standard_normal(raw.shape, dtype=np.float32)
    return noisy


def expose(image: Array, gain: float, a: float, b: float, rng: np.random.Generator, *, noisy: bool = True) -> Array:
    """The picture with ``gain`` times its light (0.25: two stops too short) and, unless ``noisy`` is off, the noise of
    :func:`add_sensor_noise` at that light; stored values within 0..1. The noise is drawn either way."""
    light = to_light(image) * np.float32(gain)
    taken = add_sensor_noise(light, a, b, rng)
    return to_stored(taken if noisy else light)


def mosaic(colours: Array, row: int, column: int) -> Array:
    """HxWx3 to the HxW that a Bayer sensor sees; its first red pixel lies at (``row``, ``column``), each 0 or 1."""
    seen: Array = colours[..., 1].copy()
    seen[row::2, column::2] = colours[row::2, column::2, 0]
    seen[1 - row :: 2, 1 - column :: 2] = colours[1 - row :: 2, 1 - column :: 2, 2]
    return seen


def demosaic(seen: Array, row: int, column: int, *, corrected: bool = True) -> Array:
    """HxW of a Bayer sensor to HxWx3, borders mirrored.

    ``corrected``: the gradient-corrected linear interpolation of Malvar, He and Cutler (ICASSP 2004); without it,
    bilinear.
    """
    height, width = seen.shape
    p = np.pad(seen, 2, mode="reflect")

    def at(dy: int, dx: int) -> Array:
        shifted: Array = p[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
        return shifted

    beside, above = at(0, -1) + at(0, 1), at(-1, 0) + at(1, 0)
    corners = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    if corrected:
        far_beside, far_above = at(0, -2) + at(0, 2), at(-2, 0) + at(2, 0)
        far = far_beside + far_above
        green = (4 * seen + 2 * (beside + above) - far) / 8  # at red or blue
        along = (5 * seen + 4 * beside - corners - far_beside + far_above / 2) / 8  # at green: the row's colour
        across = (5 * seen + 4 * above - corners - far_above + far_beside / 2) / 8  # at green: the column's
        opposite = (6 * seen + 2 * corners - 1.5 * far) / 8  # red at blue, blue at red
    else:
        green, along, across, opposite = (beside + above) / 4, beside / 2, above / 2, corners / 4
    out = np.empty((height, width, 3), np.float32)
    red, blue = (slice(row, None, 2), slice(column, None, 2)), (slice(1 - row, None, 2), slice(1 - column, None, 2))
    in_red_row, in_blue_row = (red[0], blue[1]), (blue[0], red[1])  # the green pixels
    out[..., 1] = seen
    for place in (red, blue):
        out[(*place, 1)] = green[place]
    for channel, own, other, own_row, other_row in (
        (0, red, blue, in_red_row, in_blue_row),
        (2, blue, red, in_blue_row, in_red_row),
    ):
        out[(*own, channel)] = seen[own]
        out[(*other, channel)] = opposite[other]
        out[(*own_row, channel)] = along[own_row]
        out[(*other_row, channel)] = across[other_row]
    return out


def develop(image: Array, how: Development, rng: np.random.Generator, *, noisy: bool = True) -> Array:
    """What the camera makes of the scene that ``image`` shows; the same shape, within 0..1.

    Tone curve and white balance are undone, the sensor adds its noise, and everything is done again: mosaic,
    demosaicking, tone, the camera's own denoising and sharpening, shrinking. ``noisy`` off leaves the noise out and
    draws it all the same: the picture that a perfect denoiser would give, as soft as the camera's.
    """
    gains = np.array([how.red_gain, 1.0, how.blue_gain], np.float32)
    light = to_light(straighten_tone(image, how.contrast))
    height, width = image.shape[:2]
    if how.shrink > 1:
        light = light.repeat(how.shrink, 0).repeat(how.shrink, 1)
    row, column = (int(k) for k in rng.integers(2, size=2))
    # Values of the raw file. A channel with a gain saturates late there: what is white stays white.
    raw = light / gains
    if how.demosaic == FULL_COLOUR:
        taken = add_sensor_noise(raw, how.a, how.b, rng)
        balanced = np.clip(taken if noisy else raw, 0.0, 1.0) * gains
    else:
        seen, scale = mosaic(raw, row, column), mosaic(np.broadcast_to(gains, raw.shape), row, column)
        taken = add_sensor_noise(seen, how.a, how.b, rng)
        seen = np.clip(taken if noisy else seen, 0.0, 1.0) * scale
        balanced = demosaic(seen, row, column, corrected=how.demosaic == MALVAR)
    stored = to_stored(balanced)
    if how.denoise > 0:
        stored = _smooth_colour(_sigma_filter(stored, how), how.denoise)
    if how.shrink > 1:
        blocks = stored.reshape(height, how.shrink, width, how.shrink, 3)
        stored = np.asarray(blocks.mean(axis=(1, 3)), np.float32)
    if how.sharpen > 0:
        stored = stored + np.float32(how.sharpen) * (stored - _box(stored))
    return bend_tone(stored, how.contrast)


def _box(image: Array) -> Array:
    """The mean of 3x3 pixels, borders mirrored; HxWxC."""
    p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = p[:-2] + p[1:-1] + p[2:]
    mean: Array = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9.0)
    return mean


def _sigma_filter(image: Array, how: Development) -> Array:
    """The mean of those of 3x3 pixels that are about as bright (Lee, "Digital image smoothing and the sigma filter",
    1983), as far as ``how.denoise`` says. About: within twice the noise in mid grey, in stored values."""
    near = np.float32(2.0 * (how.a * 0.2 + how.b) ** 0.5 * 1.2)
    p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    total, count = image.copy(), np.ones_like(image)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            if (dy, dx) == (1, 1):
                continue
            other = p[dy : dy + height, dx : dx + width]
            close = np.abs(other - image) <= near
            total += np.where(close, other, 0.0)
            count += close
    smooth: Array = image + np.float32(how.denoise) * (total / count - image)
    return smooth


def _smooth_colour(image: Array, amount: float) -> Array:
    """Colour differences averaged over 3x3 twice, brightness kept: cameras smooth colour noise harder."""
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    colour: Array = image - grey[..., None]
    return np.asarray(image + np.float32(amount) * (_box(_box(colour)) - colour), np.float32)
