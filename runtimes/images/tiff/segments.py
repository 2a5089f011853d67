"""Strips and tiles of a TIFF: from stored bytes to samples, whatever the compression, bit depth, predictor and byte
order.

zlib and lzma are Python's; LZW, PackBits, ZSTD and the fax codes are byte streams that Pillow's libtiff unpacks when
they are handed over as one grey strip; JPEG segments are JPEG files once their tables are put before them.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError
from clusir.runtimes.images.pillow_open import opened_by_pillow

__all__ = ["BYTE_SCHEMES", "JPEG_SCHEME", "SampleLayout", "decode_segment", "scheme_name"]

_FAX = (2, 3, 4)
JPEG_SCHEME = 7
BYTE_SCHEMES = (1, 5, 8, 32773, 32946, 34925, 50000, *_FAX)
_NAMES = {
    1: "no compression",
    2: "CCITT RLE",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32809: "ThunderScan",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    34933: "PNG",
    50000: "ZSTD",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
_CHUNK_BYTES = 16 << 20


def scheme_name(compression: int) -> str:
    """What a compression scheme is called in messages."""
    return _NAMES.get(compression, f"compression scheme {compression}")


@dataclass(frozen=True)
class SampleLayout:
    """How the samples of a segment are stored. ``order`` is ``<`` or ``>``, ``kind`` ``u`` (unsigned) or ``f``
    (floating point); ``channels`` are those of one segment (1 where planes are stored apart); ``fax`` are the tags
    that a fax code needs; ``transform`` says that JPEG segments hold YCbCr."""

    bits: int
    kind: str
    channels: int
    order: str
    compression: int
    predictor: int
    reversed_bits: bool = False
    jpeg_tables: bytes = b""
    transform: bool = False
    fax: tuple[tuple[int, int], ...] = ()
    subsampling: tuple[int, int] = (1, 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of decoded samples: the smallest unsigned integer that holds them, or their floating-point type."""
        if self.kind == "f":
            return np.dtype(f"f{self.bits // 8}")
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    def segment_bytes(self, rows: int, columns: int) -> int:
        """Bytes of an unpacked segment."""
        h, v = self.subsampling
        if (h, v) != (1, 1):
            return -(-rows // v) * -(-columns // h) * (h * v + 2)
        return rows * (-(-columns * self.channels * self.bits // 8))


def decode_segment(data: bytes, rows: int, columns: int, layout: SampleLayout) -> NDArray[Any]:
    """Samples of one strip or tile, [rows, columns, channels] of ``layout.dtype``. Raises ImageError where the bytes
    are damaged or too few."""
    if layout.reversed_bits:
        data = data.translate(_REVERSED)
    if layout.compression == JPEG_SCHEME:
        return _jpeg(data, rows, columns, layout)
    need = layout.segment_bytes(rows, columns)
    raw = _unpacked(data, need, rows, columns, layout)
    if len(raw) < need:
        raise ImageError(f"truncated: a strip or tile of {need} bytes holds {len(raw)}")
    raw = raw[:need]
    if layout.subsampling != (1, 1):
        return _subsampled(raw, rows, columns, layout.subsampling)
    if layout.predictor == 3:
        return _float_predicted(raw, rows, columns, layout)
    return _samples(raw, rows, columns, layout)


def _unpacked(data: bytes, need: int, rows: int, columns: int, layout: SampleLayout) -> bytes:
    scheme = layout.compression
    try:
        if scheme == 1:
            return data
        if scheme in (8, 32946):
            return zlib.decompressobj().decompress(data, need)
        if scheme == 34925:
            return lzma.LZMADecompressor().decompress(data, need)
        if scheme in _FAX:
            return _by_libtiff(data, columns, rows, 1, scheme, layout.fax)
        return _by_libtiff(data, need, 1, 8, scheme, ())
    except (zlib.error, lzma.LZMAError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"damaged: its {scheme_name(scheme)} data cannot be unpacked ({error})") from error


def _by_libtiff(
    data: bytes, width: int, height: int, bits: int, scheme: int, extra: tuple[tuple[int, int], ...]
) -> bytes:
    """The bytes of a stream, as those of a grey picture of one strip."""
    tags = {256: width, 257: height, 258: bits, 259: scheme, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags |= dict(extra)
    directory = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    stored = b"II*\0" + struct.pack("<I", directory) + data + bytes(len(data) % 2)
    stored += struct.pack("<H", len(tags)) + entries + bytes(4)
    with opened_by_pillow(io.BytesIO(stored), ["TIFF"]) as image:
        return image.tobytes()


def _samples(raw: bytes, rows: int, columns: int, layout: SampleLayout) -> NDArray[Any]:
    per_row = columns * layout.channels
    if layout.bits in (8, 16, 32, 64):
        kind = layout.kind if layout.predictor == 1 else "u"
        found: NDArray[Any] = np.frombuffer(raw, f"{layout.order}{kind}{layout.bits // 8}")
        found = found.astype(found.dtype.newbyteorder("="))
    else:
        found = _packed(raw, rows, per_row, layout.bits)
    found = found.reshape(rows, columns, layout.channels)
    if layout.predictor == 2:
        found = np.cumsum(found, axis=1, dtype=found.dtype)
    return found.view(layout.dtype) if found.dtype != layout.dtype else found


def _packed(raw: bytes, rows: int, per_row: int, bits: int) -> NDArray[Any]:
    """Samples of 1 to 15 bits, the first in the highest bits; every row begins with a new byte."""
    stored = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    result = np.empty((rows, per_row), np.uint8 if bits <= 8 else np.uint16)
    step = max(1, _CHUNK_BYTES // (per_row * bits))
    for start in range(0, rows, step):
        digits = np.unpackbits(stored[start : start + step], axis=1)[:, : per_row * bits].reshape(-1, per_row, bits)
        value = np.zeros(digits.shape[:2], result.dtype)
        for i in range(bits):
            value = (value << 1) | digits[:, :, i]
        result[start : start + step] = value
    return result


def _float_predicted(raw: bytes, rows: int, columns: int, layout: SampleLayout) -> NDArray[Any]:
    """Adobe's floating-point predictor (TIFF Technical Note 3): bytes of one weight lie together, highest first, and
    are differenced at the distance of one pixel."""
    size = layout.bits // 8
    differences = np.frombuffer(raw, np.uint8).reshape(rows, columns * size, layout.channels)
    planes = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(rows, size, columns * layout.channels)
    joined = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{size}")
    return joined.astype(layout.dtype).reshape(rows, columns, layout.channels)


def _subsampled(raw: bytes, rows: int, columns: int, subsampling: tuple[int, int]) -> NDArray[Any]:
    """YCbCr in data units of h x v luminances and one pair of chrominances (TIFF 6.0, section 21), each pair
    repeated."""
    h, v = subsampling
    down, across = -(-rows // v), -(-columns // h)
    units = np.frombuffer(raw, np.uint8).reshape(down, across, h * v + 2)
    luma = units[:, :, :-2].reshape(down, across, v, h).transpose(0, 2, 1, 3).reshape(down * v, across * h)
    chroma = units[:, :, -2:].repeat(v, axis=0).repeat(h, axis=1)
    return np.concatenate([luma[:, :, None], chroma], axis=2)[:rows, :columns]


def _jpeg(data: bytes, rows: int, columns: int, layout: SampleLayout) -> NDArray[Any]:
    tables = layout.jpeg_tables
    if not data.startswith(b"\xff\xd8"):
        raise ImageError("damaged: a strip or tile does not begin like JPEG")
    # Adobe's marker says whether the three channels are YCbCr; without it readers guess.
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes([layout.transform]) if layout.channels >= 3 else b""
    body = tables[2:].removesuffix(b"\xff\xd9") if tables.startswith(b"\xff\xd8") else b""
    with opened_by_pillow(io.BytesIO(b"\xff\xd8" + adobe + body + data[2:]), ["JPEG"]) as image:
        if image.width < columns or image.height < rows or image.width * image.height > 4 * rows * columns + 65536:
            raise ImageError(
                f"damaged: a JPEG strip or tile of {columns}x{rows} pixels is {image.width}x{image.height}"
            )
        pixels = np.asarray(image)
        if image.mode == "CMYK":
            pixels = 255 - pixels  # Pillow takes the inks of every JPEG for inverted
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] != layout.channels:
        raise ImageError(f"damaged: a JPEG strip or tile has {pixels.shape[2]} channels, the TIFF {layout.channels}")
    return pixels[:rows, :columns]
