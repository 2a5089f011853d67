"""TIFF written by tifffile from strips that are deflated here, 8 and 16 bit with the horizontal predictor and float
without; memory bounded by the width."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clusir.runtimes.images.metadata.keeping import BIG_TIFF
from clusir.runtimes.images.metadata.tags import EXIF_IFD, GPS_IFD, LAYOUT_TAGS, Tag, pack_ifd, read_ifd
from clusir.runtimes.images.picture import PictureInfo, whole_ratio

__all__ = ["write_tiff"]

_STRIP_BYTES = 1 << 20
# EXIF's main directory where it stands for the TIFF's own: sizes and offsets of a camera's file are not this file's.
_NOT_OURS = LAYOUT_TAGS | {EXIF_IFD, GPS_IFD}
# tifffile writes no tags of EXIF and GPS: these, of the same place in the order of numbers, are written in their stead.
_STAND_INS = {EXIF_IFD - 1: EXIF_IFD, GPS_IFD - 1: GPS_IFD}
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377


def write_tiff(stream: BinaryIO, info: PictureInfo, bands: Iterable[NDArray[Any]]) -> None:
    """Write HxWxC bands of ``info.dtype`` to a stream that can be read and searched. The byte order is that of
    ``info.exif``, whose values are copied as they are; over 4 GB of pixels make a BigTIFF."""
    import tifffile

    order, tags = read_ifd(info.exif or b"")
    predicts = bool(np.issubdtype(info.dtype, np.integer))
    rows = max(1, _STRIP_BYTES // (info.width * info.channels * info.dtype.itemsize))
    rows = min(rows, info.height)
    options: dict[str, Any] = {"predictor": 2} if predicts else {}
    if info.has_alpha:
        options["extrasamples"] = ["unassalpha"]
    if info.dpi is not None:
        options |= {"resolution": tuple(_rational(d) for d in info.dpi), "resolutionunit": 2}
    elif info.aspect is not None:
        options |= {"resolution": tuple((n, 1) for n in whole_ratio(info.aspect, 2**31)), "resolutionunit": 1}
    grey = info.channels <= 2
    named: Any = _Named(stream)
    big = info.bytes_decoded > BIG_TIFF
    with tifffile.TiffWriter(named, byteorder="<" if order == "<" else ">", bigtiff=big) as writer:
        writer.write(
            _strips(bands, info, rows, order, predicts),
            shape=(info.height, info.width) if info.channels == 1 else (info.height, info.width, info.channels),
            dtype=info.dtype,
            photometric="minisblack" if grey else "rgb",
            planarconfig=None if info.channels == 1 else "contig",
            compression="zlib",
            rowsperstrip=rows,
            extratags=_extra_tags(info, tags, order),
            metadata=None,
            software=False,
            datetime=None,
            iccprofile=info.icc,
            **options,
        )
    if info.exif is not None:
        _append_sub_ifds(stream, info.exif, order, tags)


class _Named:
    """A stream that was opened by a number, with a name, which tifffile wants for its messages."""

    name = "picture.tif"

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)


def _rational(value: float) -> tuple[int, int]:
    return min(round(value * 1000), 2**32 - 1), 1000


def _strips(bands: Iterable[NDArray[Any]], info: PictureInfo, rows: int, order: str, predicts: bool) -> Iterator[bytes]:
    pending = np.empty((0, info.width, info.channels), info.dtype)
    for band in bands:
        pending = np.concatenate([pending, band])
        whole = len(pending) // rows * rows
        for start in range(0, whole, rows):
            yield _packed(pending[start : start + rows], order, predicts)
        pending = pending[whole:].copy()
    if len(pending):
        yield _packed(pending, order, predicts)


def _packed(strip: NDArray[Any], order: str, predicts: bool) -> bytes:
    data = strip.copy()
    if predicts:
        data[:, 1:] -= strip[:, :-1]
    return zlib.compress(data.astype(data.dtype.newbyteorder("<" if order == "<" else ">"), copy=False).tobytes(), 6)


def _extra_tags(info: PictureInfo, tags: dict[int, Tag], order: str) -> list[tuple[int, int, int, Any, bool]]:
    """(number, type, count, bytes, once) as tifffile takes them. Sub-directories get their places later."""
    found: list[tuple[int, int, int, Any, bool]] = [
        (n, t.kind, t.count, t.value, True) for n, t in tags.items() if n not in _NOT_OURS
    ]
    if info.bytes_decoded <= BIG_TIFF:
        found += [(stand_in, 4, 1, 0, True) for stand_in, n in _STAND_INS.items() if n in tags]
    extras = {e.kind: e.data for e in info.extras}
    for number, kind, data in (
        (_XMP, 1, info.xmp),
        (_PHOTOSHOP, 1, extras.get("photoshop")),
        (_IPTC, 7, extras.get("iptc")),
    ):
        if data:
            found.append((number, kind, len(data), data, True))
    return found


def _append_sub_ifds(stream: BinaryIO, exif: bytes, order: str, tags: dict[int, Tag]) -> None:
    """Pack the directories of EXIF and GPS behind the file, and put numbers and places where the stand-ins are."""
    places = {number: at for number, at in _entries(stream, order) if number in _STAND_INS}
    for stand_in, at in places.items():
        number = _STAND_INS[stand_in]
        stream.seek(0, 2)
        if stream.tell() % 2:
            stream.write(b"\0")
        position = stream.tell()
        _, inner = read_ifd(exif, tags[number].integer(order))
        stream.write(pack_ifd(inner, position, order, exif, 1))
        stream.seek(at)
        stream.write(struct.pack(order + "HHII", number, 4, 1, position))
    stream.seek(0, 2)


def _entries(stream: BinaryIO, order: str) -> Iterator[tuple[int, int]]:
    """(tag, place of its entry) of the only directory of a classic TIFF."""
    stream.seek(2)
    if struct.unpack(order + "H", stream.read(2))[0] != 42:
        return
    (offset,) = struct.unpack(order + "I", stream.read(4))
    stream.seek(offset)
    (count,) = struct.unpack(order + "H", stream.read(2))
    entries = stream.read(12 * count)
    for i in range(count):
        yield struct.unpack_from(order + "H", entries, 12 * i)[0], offset + 2 + 12 * i
