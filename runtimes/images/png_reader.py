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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.png_header import SIGNATURE, PngHeader, png_chunks

__all__ = ["PngRows", "read_interlaced"]

_PIECE = 1 << 18
_BAND_BYTES = 8 << 20


class PngRows:
    """The rows of a PNG that streams. Rows are asked for in rising order; going back starts again from the top."""

    def __init__(self, path: Path, header: PngHeader) -> None:
        self._path, self._header = path, header
        self.height, self.width, self.channels = header.height, header.width, header.channels
        self._stride = header.stride
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
        filtered = self.inflate(need)
        if len(filtered) < need:
            row = self._next + len(filtered) // (self._stride + 1)
            raise ImageError(f"truncated: its pixels end in row {row} of {self.height}")
        rows = _unfilter(b"\0" + self._previous + filtered, self._header.width, count + 1, self._header)[1:]
        self._previous = rows[-1].tobytes()
        return _meant(rows, self._header.width, self._header)

    def inflate(self, need: int) -> bytes:
        """The next ``need`` bytes of filtered rows, fewer where the data ends."""
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
        for kind, length in png_chunks(stream, size):
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


def _unfilter(filtered: bytes, width: int, rows: int, header: PngHeader) -> NDArray[np.uint8]:
    """``rows`` filtered rows to [rows, bytes of a row] as they were before filtering. The filters work on bytes at the
    distance of one pixel, so rows are undone as 8-bit pixels of as many bytes: packed samples as grey, 16-bit grey as
    grey and alpha, 16-bit grey and alpha as RGBA."""
    stride = header.row_bytes(width)
    if header.depth < 16 or header.colour_type in (0, 4):
        step = header.stored_channels * header.depth // 8 or 1
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[step]
        return _small_png(filtered, stride // step, rows, 8, colour).reshape(rows, stride)
    both = np.empty((rows, stride), np.uint8)
    for i, half in enumerate(("16B", "16L")):
        both[:, i::2] = _small_png(filtered, width, rows, 16, header.colour_type, half).reshape(rows, stride // 2)
    return both


def _meant(rows: NDArray[np.uint8], width: int, header: PngHeader) -> NDArray[Any]:
    """From bytes to HxWxC of the picture: samples of any depth, palette and transparent colour applied."""
    depth, stored = header.depth, header.stored_channels
    samples: NDArray[Any]
    if depth == 16:
        samples = np.ascontiguousarray(rows).view(">u2").astype(np.uint16).reshape(len(rows), width, stored)
    elif depth == 8:
        samples = rows.reshape(len(rows), width, stored)
    else:
        shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
        packed = (rows[:, :, None] >> shifts) & np.uint8((1 << depth) - 1)
        samples = packed.reshape(len(rows), -1)[:, :width, None]
    if header.colour_type == 3:
        return _palette(header)[samples[:, :, 0]]
    alpha = None
    if header.transparency is not None and header.colour_type in (0, 2):
        key = np.frombuffer(header.transparency[: 2 * stored], ">u2") & ((1 << depth) - 1)
        clear = (samples == key.astype(samples.dtype)).all(axis=2, keepdims=True)
        top = 65535 if depth == 16 else 255
        alpha = np.where(clear, 0, top).astype(samples.dtype)
    if depth < 8:
        samples = samples * np.uint8(255 // ((1 << depth) - 1))
    return samples if alpha is None else np.concatenate([samples, alpha], axis=2)


def _palette(header: PngHeader) -> NDArray[np.uint8]:
    """[256, 3 or 4]; what an index beyond the palette shows is black."""
    table = np.zeros((256, header.channels), np.uint8)
    colours = np.frombuffer(header.palette[: len(header.palette) // 3 * 3], np.uint8).reshape(-1, 3)
    table[: len(colours), :3] = colours
    if header.transparency is not None:
        opacity = np.frombuffer(header.transparency[:256], np.uint8)
        table[:, 3] = 255
        table[: len(opacity), 3] = opacity
    return table


# Adam7: first column and row, and steps, of each pass (PNG, section 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read_interlaced(path: Path, header: PngHeader) -> NDArray[Any]:
    """All rows of an interlaced PNG, HxWxC. Raises ImageError where the data ends or is damaged."""
    result = np.empty((header.height, header.width, header.channels), np.uint16 if header.depth == 16 else np.uint8)
    source = PngRows(path, header)
    for number, (left, top, step_x, step_y) in enumerate(_PASSES):
        width, height = -(-(header.width - left) // step_x), -(-(header.height - top) // step_y)
        if width <= 0 or height <= 0:
            continue
        need = height * (header.row_bytes(width) + 1)
        filtered = source.inflate(need)
        if len(filtered) < need:
            raise ImageError(f"truncated: its pixels end in pass {number + 1} of 7")
        rows = _unfilter(filtered, width, height, header)
        result[top::step_y, left::step_x] = _meant(rows, width, header)
    return result


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
