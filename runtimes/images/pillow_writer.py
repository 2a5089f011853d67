"""JPEG, WebP and BMP: formats that Pillow encodes in one piece."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.picture import PictureInfo

__all__ = ["PillowWriter"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_JPEG_QUALITY = 95


class PillowWriter:
    """Takes HxWxC uint8 bands from top to bottom; :meth:`finish` encodes."""

    def __init__(self, stream: BinaryIO, info: PictureInfo) -> None:
        self._stream, self._info = stream, info
        self._image = Image.new(_MODES[info.channels], (info.width, info.height))
        self._row = 0

    def write(self, band: NDArray[Any]) -> None:
        pixels = np.ascontiguousarray(band[:, :, 0] if band.shape[2] == 1 else band)
        self._image.paste(Image.fromarray(pixels), (0, self._row))
        self._row += band.shape[0]

    def finish(self) -> None:
        info = self._info
        image = self._image
        options: dict[str, Any] = {"icc_profile": info.icc} if info.icc else {}
        if info.dpi is not None and info.format in ("JPEG", "BMP"):
            options["dpi"] = tuple(round(d) for d in info.dpi)
        if info.exif is not None and info.format in ("JPEG", "WEBP"):
            options["exif"] = b"Exif\0\0" + info.exif
        if info.xmp is not None and info.format in ("JPEG", "WEBP"):
            options["xmp"] = info.xmp
        if info.format == "JPEG":
            options |= _jpeg_quality(info, image.mode == "L")
        elif info.format == "WEBP":
            # exact keeps the colours under full transparency; alpha is lossless in either kind.
            options |= {"lossless": info.lossless, "quality": 100 if info.lossless else 95, "exact": True, "method": 4}
            if image.mode in ("L", "LA"):
                image = image.convert("RGB" if image.mode == "L" else "RGBA")  # WebP has no grey
        try:
            image.save(self._stream, info.format, **options)
        except (OSError, ValueError) as error:
            raise ImageError(f"it cannot be written as {info.format} ({error})") from error


def _jpeg_quality(info: PictureInfo, grey: bool) -> dict[str, Any]:
    """Quantisation at least as fine as the input's and as quality 95, value by value, so that what was restored is not
    damaged again; chroma at full resolution unless the input's was halved."""
    subsampling = info.jpeg_subsampling if info.jpeg_subsampling in (0, 1, 2) else 0
    fine = [_at_quality(table, _JPEG_QUALITY) for table in _STANDARD]
    if info.jpeg_tables:
        last = len(info.jpeg_tables) - 1
        fine = [[min(a, b) for a, b in zip(t, info.jpeg_tables[min(i, last)], strict=True)] for i, t in enumerate(fine)]
    return {"qtables": fine[:1] if grey else fine, "subsampling": subsampling, "optimize": True}


def _at_quality(table: list[int], quality: int) -> list[int]:
    """libjpeg's scaling of its standard tables for qualities of 50 and more."""
    scale = 200 - 2 * quality
    return [min(255, max(1, (value * scale + 50) // 100)) for value in table]


# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance), row by row.
_STANDARD = [
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22),
        *(29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103),
        *(121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ],
    [
        *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66),
        *[99] * 38,
    ],
]
