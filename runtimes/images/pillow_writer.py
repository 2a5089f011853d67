"""JPEG, WebP, BMP, AVIF, HEIF and JPEG XL: formats that Pillow, or a plug-in of it, encodes in one piece."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.metadata.exif import PREFIX
from clusir.runtimes.images.metadata.jpeg_segments import segment, split_icc, split_xmp
from clusir.runtimes.images.metadata.photoshop import HEADER, with_iptc
from clusir.runtimes.images.picture import PictureInfo, whole_ratio

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
        info, image = self._info, self._image
        if info.format == "JPEG":
            self._stream.write(_jpeg(image, info))
            return
        options: dict[str, Any] = {}
        if info.format == "BMP":
            if info.dpi is not None:
                options["dpi"] = tuple(round(d) for d in info.dpi)
        else:
            options = {"icc_profile": info.icc} if info.icc else {}
            # WebP has no grey, and its cousins take RGB alike.
            image = image.convert("RGB" if image.mode == "L" else "RGBA") if image.mode in ("L", "LA") else image
            if info.exif is not None:
                options["exif"] = info.exif if info.format == "JXL" else PREFIX + info.exif
            if info.xmp is not None:
                options["xmp"] = info.xmp
            options |= _coding(info)
        _save(image, self._stream, info.format, options)


def _save(image: Image.Image, stream: BinaryIO, kind: str, options: dict[str, Any]) -> None:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    elif kind == "JXL":
        import pillow_jxl  # noqa: F401
    try:
        image.save(stream, kind, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"it cannot be written as {kind} ({error})") from error


def _coding(info: PictureInfo) -> dict[str, Any]:
    """Lossless where the input was or is of another format; otherwise near it."""
    if info.format == "WEBP":
        # exact keeps the colours under full transparency; alpha is lossless in either kind.
        return {"lossless": info.lossless, "quality": 100 if info.lossless else 95, "exact": True, "method": 4}
    if info.format == "JXL":
        return {"lossless": info.lossless, "quality": 100 if info.lossless else 95}
    return {"quality": 95, "subsampling": "4:4:4"} if info.format == "AVIF" else {"quality": 95, "chroma": 444}


def _jpeg(image: Image.Image, info: PictureInfo) -> bytes:
    """Pillow's scan behind segments of our own, in the order that EXIF and JFIF readers expect."""
    options = _jpeg_quality(info, image.mode == "L")
    if info.dpi is not None:
        options["dpi"] = tuple(min(65535, max(1, round(d))) for d in info.dpi)
    buffer = io.BytesIO()
    _save(image, buffer, "JPEG", options)
    data = buffer.getvalue()
    head = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    jfif = bytearray(data[:head])
    if info.dpi is None and info.aspect is not None:
        x, y = whole_ratio(info.aspect, 65535)
        jfif[13:18] = bytes((0,)) + x.to_bytes(2, "big") + y.to_bytes(2, "big")
    blocks = [(0xE1, PREFIX + info.exif)] if info.exif is not None else []
    blocks += [(0xE1, payload) for payload in split_xmp(info.xmp)] if info.xmp is not None else []
    blocks += [(0xE2, payload) for payload in split_icc(info.icc)] if info.icc is not None else []
    extras = {e.kind: e.data for e in info.extras}
    photoshop = extras.get("photoshop", b"")
    if "iptc" in extras:
        photoshop = with_iptc(photoshop, extras["iptc"])
    # Readers join what is split.
    blocks += [(0xED, HEADER + photoshop[i : i + 65000]) for i in range(0, len(photoshop), 65000)]
    blocks += [(0xFE, e.data) for e in info.extras if e.kind == "comment"]
    return bytes(jfif) + b"".join(segment(marker, payload) for marker, payload in blocks) + data[head:]


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
