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

from clusir.errors import ImageError
from clusir.runtimes.images.atomic import whole_file
from clusir.runtimes.images.open import Picture, Probe, open_picture, probe_picture
from clusir.runtimes.images.picture import SUFFIX_FORMATS, WRITE_SUFFIXES, PictureInfo
from clusir.runtimes.images.pillow_writer import PillowWriter
from clusir.runtimes.images.png_writer import PngWriter
from clusir.runtimes.images.tiff_writer import TiffWriter

__all__ = ["Picture", "Probe", "open_picture", "output_info", "probe_picture", "save_picture"]


class _Writer(Protocol):
    def write(self, band: NDArray[Any]) -> None: ...
    def finish(self) -> None: ...


_WRITERS: dict[str, Callable[[BinaryIO, PictureInfo], _Writer]] = {
    "PNG": PngWriter,
    "TIFF": TiffWriter,
    "JPEG": PillowWriter,
    "WEBP": PillowWriter,
    "BMP": PillowWriter,
}


def output_info(info: PictureInfo, target: str | Path, alpha: str = "keep") -> PictureInfo:
    """What a restored picture is as file ``target``: format by its suffix, channels and depth that it can hold.

    Raises ImageError where the suffix is unknown or cannot hold alpha.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise ImageError(f"{target}: {suffix or 'no suffix'} cannot be written; use one of {', '.join(WRITE_SUFFIXES)}")
    kind = SUFFIX_FORMATS[suffix]
    channels = info.channels - 1 if info.has_alpha and alpha == "drop" else info.channels
    if kind in ("JPEG", "BMP") and channels in (2, 4):
        raise ImageError(f"{target}: {kind} holds no alpha; use another suffix or --alpha drop")
    dtype = info.dtype
    if kind in ("JPEG", "WEBP", "BMP"):
        dtype = np.dtype(np.uint8)
    elif kind == "PNG" and dtype == np.float32:
        dtype = np.dtype(np.uint16)
    icc = info.icc if kind != "BMP" else None
    chunks = info.png_chunks if kind == "PNG" else ()
    lossless = info.lossless or info.format != kind
    return replace(info, format=kind, channels=channels, dtype=dtype, icc=icc, png_chunks=chunks, lossless=lossless)


def save_picture(
    target: str | Path, bands: Iterable[NDArray[Any]], info: PictureInfo, like: Path | None = None
) -> None:
    """Write bands of rows (HxWxC of ``info.dtype``) as ``info.format``; ``target`` appears complete or not at all.

    ``like`` is the file that the picture was made from: a new ``target`` is no more open than that (see
    :func:`clusir.runtimes.images.atomic.whole_file`). Raises ImageError where the disk is full, the folder cannot be
    written, or the format refuses.
    """
    target = Path(target)
    try:
        with whole_file(target, like) as stream:
            writer = _WRITERS[info.format](stream, info)
            for band in bands:
                writer.write(band)
            writer.finish()
    except OSError as error:
        raise ImageError(f"{target}: it cannot be written ({error.strerror or error})") from error
