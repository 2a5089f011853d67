"""TIFF written by strips, 8 and 16 bit and float, deflated with the horizontal predictor; memory bounded by the width.

Pillow cannot write 16-bit RGB. Baseline TIFF 6.0 with Adobe deflate (8) and predictor 2 is read by everything that
reads 16-bit TIFF at all; floats are written without predictor.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.images.tiff_tags import EXIF_IFD, GPS_IFD, ORIENTATION, Tag, pack_ifd, read_ifd

__all__ = ["DESCRIPTIVE_TAGS", "TiffWriter"]

# What says something about the picture rather than about how its bytes are laid out.
DESCRIPTIVE_TAGS = frozenset(
    (
        *(0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x013C, 0x013E, 0x013F),
        *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, 0x83BB, ORIENTATION, EXIF_IFD, GPS_IFD),
    )
)
_STRIP_BYTES = 1 << 20


class TiffWriter:
    """Takes HxWxC bands of ``info.dtype`` from top to bottom; :meth:`finish` writes the directory."""

    def __init__(self, stream: BinaryIO, info: PictureInfo) -> None:
        self._stream, self._info = stream, info
        # EXIF decides the byte order: its values are copied as they are.
        self._order, self._described = read_ifd(info.exif or b"")
        self._rows_per_strip = max(1, _STRIP_BYTES // (info.width * info.channels * info.dtype.itemsize))
        self._pending = np.empty((0, info.width, info.channels), info.dtype)
        self._strips: list[tuple[int, int]] = []
        stream.write((b"II*\0" if self._order == "<" else b"MM\0*") + b"\0\0\0\0")

    def write(self, band: NDArray[Any]) -> None:
        self._pending = np.concatenate([self._pending, band])
        whole = len(self._pending) // self._rows_per_strip * self._rows_per_strip
        for start in range(0, whole, self._rows_per_strip):
            self._strip(self._pending[start : start + self._rows_per_strip])
        self._pending = self._pending[whole:].copy()

    def finish(self) -> None:
        if len(self._pending):
            self._strip(self._pending)
        if self._stream.tell() % 2:
            self._stream.write(b"\0")
        position = self._stream.tell()
        directory = pack_ifd(self._tags(), position, self._order, self._info.exif or b"")
        self._stream.write(directory)
        if self._stream.tell() >= 1 << 32:
            raise ImageError("a TIFF cannot be larger than 4 GB; write PNG instead")
        self._stream.seek(4)
        self._stream.write(struct.pack(self._order + "I", position))

    def _strip(self, rows: NDArray[Any]) -> None:
        data = rows.copy()
        if self._predicts:
            data[:, 1:] -= rows[:, :-1]
        packed = zlib.compress(
            data.astype(data.dtype.newbyteorder(">" if self._order == ">" else "<"), copy=False).tobytes(), 6
        )
        self._strips.append((self._stream.tell(), len(packed)))
        self._stream.write(packed)

    @property
    def _predicts(self) -> bool:
        return bool(np.issubdtype(self._info.dtype, np.integer))

    def _tags(self) -> dict[int, Tag]:
        info, order = self._info, self._order
        tags = {n: t for n, t in self._described.items() if n in DESCRIPTIVE_TAGS}

        def add(number: int, kind: str, *values: int) -> None:
            code = {"H": 3, "I": 4}[kind]
            tags[number] = Tag(number, code, len(values), struct.pack(f"{order}{len(values)}{kind}", *values))

        add(0x0100, "I", info.width)
        add(0x0101, "I", info.height)
        add(0x0102, "H", *[8 * info.dtype.itemsize] * info.channels)
        add(0x0103, "H", 8)
        add(0x0106, "H", 2 if info.channels >= 3 else 1)
        add(0x0111, "I", *(offset for offset, _ in self._strips))
        add(0x0115, "H", info.channels)
        add(0x0116, "I", self._rows_per_strip)
        add(0x0117, "I", *(length for _, length in self._strips))
        add(0x011C, "H", 1)
        add(0x013D, "H", 2 if self._predicts else 1)
        if info.has_alpha:
            add(0x0152, "H", 2)  # unassociated alpha
        if not self._predicts:
            add(0x0153, "H", *[3] * info.channels)
        if info.dpi is not None:
            for number, dpi in ((0x011A, info.dpi[0]), (0x011B, info.dpi[1])):
                tags[number] = Tag(number, 5, 1, struct.pack(order + "II", min(round(dpi * 1000), 2**32 - 1), 1000))
            add(0x0128, "H", 2)
        for number, blob in ((0x8773, info.icc), (0x02BC, info.xmp)):
            if blob is not None:
                tags[number] = Tag(number, 7 if number == 0x8773 else 1, len(blob), blob)
        return tags
