"""Colours as numbers of sRGB: for CMYK, and for pictures that are shown beside others."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.picture import PictureInfo

__all__ = ["cmyk_to_srgb", "shown_as_srgb"]


def cmyk_to_srgb(profile: bytes) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """A function from HxWx4 inks (255 = full) to HxWx3 sRGB, by a CMYK profile. Raises ImageError where it is none."""
    transform = _transform(profile, "CMYK")

    def convert(inks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(transform(Image.fromarray(np.ascontiguousarray(inks), "CMYK")))

    return convert


def _transform(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image]:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ImageError(f"its {mode} profile cannot be used ({error}); convert it to RGB") from error

    def apply(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted

    return apply


def shown_as_srgb(pixels: NDArray[Any], info: PictureInfo) -> NDArray[Any]:
    """HxWxC as a viewer of sRGB has to be given it: by the file's cICP, its profile, or its gAMA, whichever ranks
    first.

    The same array where it is sRGB already, or where its profile cannot be used; otherwise uint8, alpha as it was. Grey
    becomes RGB under a profile.
    """
    has_alpha = pixels.shape[2] in (2, 4)
    convert = _conversion(info, pixels.shape[2] - has_alpha)
    if convert is None:
        return pixels
    bands = []
    for start in range(0, len(pixels), _ROWS):
        unit = _unit(pixels[start : start + _ROWS])
        shown = convert(unit[:, :, : unit.shape[2] - has_alpha])
        joined = np.concatenate([shown, unit[:, :, -1:]], axis=2) if has_alpha else shown
        bands.append(np.rint(joined * 255).astype(np.uint8))
    return np.concatenate(bands)


def _conversion(info: PictureInfo, colours: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
    chunks = {e.name: e.data for e in info.extras if e.kind == "png_colour"}
    cicp = chunks.get("cICP", b"")
    if len(cicp) == 4:
        return lambda unit: _from_cicp(unit, cicp[0], cicp[1])
    if info.icc:
        return _from_profile(info.icc, colours)
    gamma = struct.unpack(">I", chunks["gAMA"])[0] if len(chunks.get("gAMA", b"")) == 4 else 0
    return (lambda unit: _encoded(unit ** np.float32(1e5 / gamma))) if gamma else None


def _unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    top = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return np.clip(pixels.astype(np.float32) / np.float32(top), 0, 1)


def _from_profile(icc: bytes, colours: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
    mode = {b"RGB ": "RGB", b"GRAY": "L"}.get(icc[16:20])
    if mode is None or (mode == "RGB") != (colours == 3):
        return None
    try:
        transform = _transform(icc, mode)
    except ImageError:
        return None

    def convert(unit: NDArray[np.float32]) -> NDArray[np.float32]:
        eight = np.rint(unit * 255).astype(np.uint8)
        shown = transform(Image.fromarray(np.ascontiguousarray(eight if mode == "RGB" else eight[:, :, 0])))
        return np.asarray(shown).astype(np.float32) / np.float32(255)

    return convert


def _encoded(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB's curve (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055).astype(
        np.float32
    )


_ROWS = 256
# To linear sRGB from BT.2020 and Display P3 (columns are the primaries; ITU-R BT.2087, SMPTE EG 432-1).
_TO_SRGB = {
    9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}


def _from_cicp(unit: NDArray[np.float32], primaries: int, transfer: int) -> NDArray[np.float32]:
    """ITU-T H.273: PQ (16; 203 cd/m2 is white, BT.2408), HLG (18), linear (8); all others are taken for sRGB's
    curve."""
    if transfer == 16:
        power = unit ** np.float32(1 / 78.84375)
        ratio = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        linear = (ratio ** np.float32(1 / 0.1593017578125) * np.float32(10000 / 203)).astype(np.float32)
    elif transfer == 18:
        scene = np.where(unit <= 0.5, unit**2 / 3, (np.exp((unit - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        linear = (scene.astype(np.float32) ** np.float32(1.2) / np.float32(0.2035)).astype(np.float32)
    elif transfer == 8:
        linear = unit
    else:
        linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4).astype(np.float32)
    if primaries in _TO_SRGB and unit.shape[2] == 3:
        linear = np.asarray(linear @ np.array(_TO_SRGB[primaries], np.float32).T, np.float32)
    return _encoded(linear)
