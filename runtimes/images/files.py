"""Picture files in and out: ``open_picture`` reads them, ``save_picture`` writes them atomically.

What is not pixels (profile, EXIF, XMP, resolution) travels in a :class:`clusir.runtimes.images.picture.PictureInfo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from clusir.atomic import whole_file
from clusir.errors import ImageError
from clusir.runtimes.images.formats import ALL_SUFFIXES, MAX_SIDES, WRITE_SUFFIXES, install_hint, readable
from clusir.runtimes.images.metadata.keeping import settle
from clusir.runtimes.images.metadata.truth import enlarged_info
from clusir.runtimes.images.open import Picture, Probe, open_picture, probe_picture
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.images.pillow_writer import PillowWriter
from clusir.runtimes.images.png_writer import PngWriter

__all__ = ["Picture", "Probe", "open_picture", "output_info", "probe_picture", "save_picture"]

Bands = Iterable[NDArray[Any]]


class _Writer(Protocol):
    def write(self, band: NDArray[Any]) -> None: ...
    def finish(self) -> None: ...


def _pushed(make: Callable[[BinaryIO, PictureInfo], _Writer]) -> Callable[[BinaryIO, PictureInfo, Bands], None]:
    def write(stream: BinaryIO, info: PictureInfo, bands: Bands) -> None:
        writer = make(stream, info)
        for band in bands:
            writer.write(band)
        writer.finish()

    return write


def _write_tiff(stream: BinaryIO, info: PictureInfo, bands: Bands) -> None:
    from clusir.runtimes.images.tiff.writer import write_tiff

    write_tiff(stream, info, bands)


_WRITERS: dict[str, Callable[[BinaryIO, PictureInfo, Bands], None]] = {
    "PNG": _pushed(PngWriter),
    "TIFF": _write_tiff,
    **dict.fromkeys(("JPEG", "WEBP", "BMP", "AVIF", "HEIF", "JXL"), _pushed(PillowWriter)),
}


def output_info(info: PictureInfo, target: str | Path, alpha: str = "keep", scale: int = 1) -> PictureInfo:
    """What a picture restored at ``scale`` times its size is as file ``target``: format by its suffix, channels,
    depth and all else that it can hold, with a note for what it cannot (see
    :mod:`clusir.runtimes.images.metadata.keeping`).

    Raises ImageError where the suffix is unknown, or the format cannot hold alpha or the size.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    kind = ALL_SUFFIXES.get(suffix)
    if kind is not None and not readable(kind):
        raise ImageError(f"{target}: {kind} is not written by this installation; {install_hint(kind)}")
    if kind is None or suffix not in WRITE_SUFFIXES:
        raise ImageError(f"{target}: {suffix or 'no suffix'} cannot be written; use one of {', '.join(WRITE_SUFFIXES)}")
    channels = info.channels - 1 if info.has_alpha and alpha == "drop" else info.channels
    if kind in ("JPEG", "BMP") and channels in (2, 4):
        raise ImageError(f"{target}: {kind} holds no alpha; use another suffix or --alpha drop")
    if kind == "TIFF" and info.dtype == np.float32 and channels > 1:
        raise ImageError(
            f"{target}: floating-point TIFF of several channels is not written, as Pillow and others do not open it; "
            "use .png, which holds 16 bit, or save the input as 16-bit integers"
        )
    info = enlarged_info(info, scale)
    largest = MAX_SIDES.get(kind)
    if largest is not None and max(info.width, info.height) > largest:
        raise ImageError(
            f"{target}: {kind} holds at most {largest} pixels a side, the picture has {info.width}x{info.height}; use "
            "another suffix, such as .png or .tif"
        )
    settled = settle(replace(info, channels=channels), kind)
    return replace(settled, lossless=info.lossless or info.format != kind)


def save_picture(
    target: str | Path, bands: Iterable[NDArray[Any]], info: PictureInfo, like: Path | None = None
) -> None:
    """Write bands of rows (HxWxC of ``info.dtype``) as ``info.format``; ``target`` appears complete or not at all.

    ``like`` is the file that the picture was made from: a new ``target`` is no more open than that (see
    :func:`clusir.atomic.whole_file`). Raises ImageError where the disk is full, the folder cannot be
    written, or the format refuses.
    """
    target = Path(target)
    try:
        with whole_file(target, like) as stream:
            _WRITERS[info.format](stream, info, bands)
    except OSError as error:
        raise ImageError(f"{target}: it cannot be written ({error.strerror or error})") from error
