"""PNG by bands of rows, 8 and 16 bit, in memory bounded by the width.

Pillow decodes a PNG whole, and halves 16-bit colour to 8. Here the chunks and the deflate stream are read in pieces,
and only the undoing of the row filters, which is too slow in Python, is handed to Pillow: a band of still filtered rows
with the row before them is wrapped into a small PNG of its own. Pillow has no 16-bit RGB, but its unpackers ``RGB;16B``
and ``RGB;16L`` take the first and the second byte of each sample: two passes give both, with no further dependency.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.picture import Limits

__all__ = ["SIGNATURE", "PngHeader", "PngRows", "read_header"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_KEPT_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs")
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
_PIECE = 1 << 18
_BAND_BYTES = 8 << 20


@dataclass(frozen=True)
class PngHeader:
    """What stands before and around the pixels. ``streams``: whether :class:`PngRows` can decode it."""

    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool
    frames: int
    transparency: bytes | None
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    kept: tuple[tuple[bytes, bytes], ...]

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour_type]

    @property
    def streams(self) -> bool:
        return self.depth >= 8 and self.colour_type != 3 and not self.interlaced and self.transparency is None


def _chunks(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """(type, length) of every chunk, the stream at its data; the caller may read the data or not."""
    stream.seek(len(SIGNATURE))
    while True:
        start = stream.tell()
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if length > size - start - 8:
            if kind != b"IDAT":
                raise ImageError(f"truncated: the chunk {kind.decode('latin1')!r} ends behind the file")
            length = size - start - 8
        yield kind, length
        stream.seek(start + 12 + length)
        if kind == b"IEND":
            return


def read_header(path: Path, limits: Limits) -> PngHeader:
    """Everything but the pixels. Raises ImageError where the file is damaged or a block is absurdly large."""
    values: dict[bytes, bytes] = {}
    kept = []
    header, frames = None, 1
    size = path.stat().st_size
    with path.open("rb") as stream:
        for kind, length in _chunks(stream, size):
            if header is None and kind != b"IHDR":
                raise ImageError("not a PNG: it does not begin with its header chunk")
            bounds = {b"eXIf": limits.exif_bytes, b"iTXt": limits.exif_bytes, b"iCCP": limits.icc_bytes}
            if kind in (b"eXIf", b"iCCP") and length > bounds[kind]:
                name = {b"eXIf": "EXIF", b"iCCP": "ICC"}[kind]
                raise ImageError(f"its {name} block of {length} bytes is over the {bounds[kind]} allowed; strip it")
            if kind == b"IHDR":
                header = _header(stream.read(length), stream.read(4))
            elif kind == b"acTL" and length >= 4:
                frames = struct.unpack(">I", stream.read(4))[0]
            elif kind == b"iTXt" and length <= bounds[kind]:
                text = stream.read(length)
                if text.startswith(_XMP_KEYWORD) and text[18:20] == b"\0\0":
                    values[b"XMP"] = text[20:].split(b"\0", 2)[-1]
            elif kind in _KEPT_CHUNKS and length <= 256:
                kept.append((kind, stream.read(length)))
            elif kind in (b"eXIf", b"iCCP", b"tRNS") and length <= limits.icc_bytes:
                values[kind] = stream.read(length)
    if header is None:
        raise ImageError("truncated: it ends before its header")
    icc = _inflate_icc(values[b"iCCP"], limits) if b"iCCP" in values else None
    return PngHeader(*header, frames, values.get(b"tRNS"), icc, values.get(b"eXIf"), values.get(b"XMP"), tuple(kept))


def _header(data: bytes, crc: bytes) -> tuple[int, int, int, int, bool]:
    if len(data) != 13 or len(crc) < 4 or struct.unpack(">I", crc)[0] != zlib.crc32(b"IHDR" + data):
        raise ImageError("damaged: the checksum of its header is wrong")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data)
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    if not width or not height or depth not in depths.get(colour, ()):
        raise ImageError(f"damaged: a header of {width}x{height} pixels, {depth} bit, colour type {colour} is not PNG")
    return width, height, depth, colour, bool(interlace)


def _inflate_icc(data: bytes, limits: Limits) -> bytes | None:
    _, _, packed = data.partition(b"\0")
    try:
        icc = zlib.decompressobj().decompress(packed[1:], limits.icc_bytes + 1)
    except zlib.error:
        return None  # a broken profile is no reason to refuse the pixels; readers ignore it too
    if len(icc) > limits.icc_bytes:
        raise ImageError(f"its ICC profile inflates to more than the {limits.icc_bytes} bytes allowed; strip it")
    return icc


class PngRows:
    """The rows of a PNG that streams. Rows are asked for in rising order; going back starts again from the top."""

    def __init__(self, path: Path, header: PngHeader) -> None:
        self._path, self._header = path, header
        self.height, self.width, self.channels = header.height, header.width, header.channels
        self._stride = header.width * header.channels * header.depth // 8
        self._bytes: Iterator[bytes] = iter(())
        self._restart()

    def _restart(self) -> None:
        self._inflater = zlib.decompressobj()
        self._bytes = _image_data(self._path)
        self._next = 0
        self._previous = bytes(self._stride)
        self._cache: tuple[int, NDArray[Any]] = (0, np.empty((0, self.width, self.channels), np.uint8))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` as HxWxC uint8 or uint16. Raises ImageError where the data ends or is damaged."""
        begin, cached = self._cache
        if start < begin:
            self._restart()
            begin, cached = self._cache
        parts = []
        if start < self._next:
            parts.append(cached[start - begin : stop - begin])
        per_step = max(1, min(_BAND_BYTES, 1 << 26) // (self._stride + 1))
        while self._next < stop:
            count = min(per_step, stop - self._next)
            band = self._decode(count)
            skip = max(0, start - self._next)
            self._next += count
            if skip < count:
                parts.append(band[skip:])
        result = np.concatenate(parts) if len(parts) != 1 else parts[0]
        if stop >= self._next:
            self._cache = (start, result)
        return result

    def _decode(self, count: int) -> NDArray[Any]:
        need = count * (self._stride + 1)
        filtered = self._inflate(need)
        if len(filtered) < need:
            row = self._next + len(filtered) // (self._stride + 1)
            raise ImageError(f"truncated: its pixels end in row {row} of {self.height}")
        raw = _unfilter(b"\0" + self._previous + filtered, count + 1, self._header)[1:]
        self._previous = raw[-1].astype(raw.dtype.newbyteorder(">")).tobytes()
        return raw

    def _inflate(self, need: int) -> bytes:
        parts, have = [], 0
        data = self._inflater.unconsumed_tail
        try:
            while have < need:
                if not data:
                    data = next(self._bytes, b"")
                    if not data:
                        break
                piece = self._inflater.decompress(data, need - have)
                data = self._inflater.unconsumed_tail
                parts.append(piece)
                have += len(piece)
                if self._inflater.eof:
                    break
        except zlib.error as error:
            raise ImageError(f"damaged: its pixels cannot be unpacked ({error})") from error
        return b"".join(parts)


def _image_data(path: Path) -> Iterator[bytes]:
    """The contents of all IDAT chunks in pieces; raises ImageError where a checksum is wrong."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        for kind, length in _chunks(stream, size):
            if kind != b"IDAT":
                continue
            crc = zlib.crc32(b"IDAT")
            while length:
                piece = stream.read(min(_PIECE, length))
                if not piece:
                    return
                length -= len(piece)
                crc = zlib.crc32(piece, crc)
                if not length:
                    stored = stream.read(4)
                    if len(stored) == 4 and struct.unpack(">I", stored)[0] != crc:
                        raise ImageError("damaged: the checksum of its pixels is wrong")
                yield piece


def _unfilter(filtered: bytes, rows: int, header: PngHeader) -> NDArray[Any]:
    """``rows`` filtered rows to HxWxC. The filters work on bytes at the distance of one pixel, so a 16-bit grey row is
    undone as 8-bit grey + alpha, and 16-bit grey + alpha as 8-bit RGBA."""
    width, channels = header.width, header.channels
    if header.depth == 8:
        return _small_png(filtered, width, rows, 8, header.colour_type).reshape(rows, width, channels)
    if header.colour_type in (0, 4):
        halves = _small_png(filtered, width, rows, 8, {0: 4, 4: 6}[header.colour_type])
        return np.ascontiguousarray(halves).view(">u2").reshape(rows, width, channels).astype(np.uint16)
    high = _small_png(filtered, width, rows, 16, header.colour_type, "16B").astype(np.uint16)
    low = _small_png(filtered, width, rows, 16, header.colour_type, "16L")
    high <<= 8
    high |= low
    return high


def _small_png(filtered: bytes, width: int, rows: int, depth: int, colour: int, half: str = "") -> NDArray[np.uint8]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, rows, depth, colour, 0, 0, 0)
    stored = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(filtered, 0)) + chunk(b"IEND", b"")
    try:
        with Image.open(io.BytesIO(SIGNATURE + stored), formats=["PNG"]) as image:
            if half:
                image.tile = [t._replace(args=f"{image.mode};{half}") for t in image.tile]
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"damaged: its rows cannot be decoded ({error})") from error
