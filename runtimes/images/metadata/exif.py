"""EXIF made true of the picture that is written: upright, of its size, without what shows the old pixels.

All is done in place, so that every offset stays valid, those inside a maker's own data too.
"""

from __future__ import annotations

import struct

from clusir.runtimes.images.metadata.tags import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    Entry,
    entries_of,
    first_ifd,
    next_ifd,
    read_ifd,
)

__all__ = ["PREFIX", "plain_exif", "settled_exif"]

PREFIX = b"Exif\0\0"
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
# X and Y of a resolution: main directory, focal plane.
_PAIRS = ((0x011A, 0x011B), (0xA20E, 0xA20F))
# Positions in pixels of the unturned picture, and the unturned thumbnail's size.
_POSITIONS = (0x9214, 0xA214)
_THUMB_AT, _THUMB_BYTES = 0x0201, 0x0202


def plain_exif(data: object) -> bytes | None:
    """The TIFF structure of an EXIF block, without the prefixes that JPEG (and some writers of other formats, and some
    twice) put before it."""
    if not isinstance(data, bytes):
        return None
    while data.startswith(PREFIX):
        data = data[len(PREFIX) :]
    return data or None


def settled_exif(
    exif: bytes, orientation: int, width: int, height: int, *, moved: bool = False
) -> tuple[bytes | None, list[str]]:
    """(EXIF of a picture that has been turned by ``orientation`` and is now ``width`` x ``height``, what was taken
    out).

    Orientation becomes 1, stored sizes those of the picture, resolutions are swapped with the axes; the thumbnail, and
    positions in pixels of a picture that was turned or whose pixels have ``moved`` otherwise, are taken out. None
    where the block is not EXIF.
    """
    order, tags = read_ifd(exif)
    start = first_ifd(exif)
    if not start or not entries_of(exif, start):
        return None, ["an EXIF block that cannot be read"]
    block, gone = bytearray(exif), []
    directories = [start] + [tags[n].integer(order) for n in (EXIF_IFD,) if n in tags]
    for offset in directories:
        entries = entries_of(exif, offset)
        for entry in entries:
            _set(block, order, entry, ORIENTATION, 1)
            for numbers, value in ((_WIDTHS, width), (_HEIGHTS, height)):
                for number in numbers:
                    _set(block, order, entry, number, value)
        if orientation >= 5:
            _swap(block, entries)
        if orientation != 1 or moved:
            positions = [e for e in entries if e.number in _POSITIONS]
            for entry in reversed(positions):
                _take_out(block, order, offset, entry)
            gone += ["EXIF positions in pixels of the picture as it was"] * bool(positions)
    if _drop_thumbnail(block, exif, order, start):
        gone.append("the EXIF thumbnail, which shows the picture as it was")
    return bytes(block), gone


def _set(block: bytearray, order: str, entry: Entry, number: int, value: int) -> None:
    if entry.number == number and entry.kind in (3, 4) and (entry.kind == 4 or value < 1 << 16):
        struct.pack_into(order + ("H" if entry.kind == 3 else "I"), block, entry.where, value)


def _swap(block: bytearray, entries: list[Entry]) -> None:
    found = {e.number: e for e in entries if e.kind == 5 and e.values == 1}
    for x, y in _PAIRS:
        if x in found and y in found:
            a, b = found[x].where, found[y].where
            block[a : a + 8], block[b : b + 8] = block[b : b + 8], block[a : a + 8]


def _take_out(block: bytearray, order: str, offset: int, entry: Entry) -> None:
    """Close the gap of an entry; the link to the next directory moves up with the rest."""
    (count,) = struct.unpack_from(order + "H", block, offset)
    end = min(offset + 2 + 12 * count + 4, len(block))
    block[entry.at : end] = block[entry.at + 12 : end] + bytes(12)
    struct.pack_into(order + "H", block, offset, count - 1)


def _drop_thumbnail(block: bytearray, exif: bytes, order: str, start: int) -> bool:
    """Cut the link to the second directory and blank its picture; trailing zeros of a block need no room."""
    at, second = next_ifd(bytes(block), start)
    if not at or not second:
        return False
    struct.pack_into(order + "I", block, at, 0)
    _, tags = read_ifd(exif, second)
    if _THUMB_AT in tags and _THUMB_BYTES in tags:
        where, length = tags[_THUMB_AT].integer(order), tags[_THUMB_BYTES].integer(order)
        # Never over what other entries need: only bytes that are a JPEG of their own are blanked.
        if exif[where : where + 2] == b"\xff\xd8" and where >= 8 and where + length <= len(exif):
            if where + length == len(exif) and second < where and not _used_behind(exif, order, start, where):
                del block[where:]
            else:
                block[where : where + length] = bytes(length)
    return True


def _used_behind(exif: bytes, order: str, start: int, where: int) -> bool:
    _, tags = read_ifd(exif)
    offsets = [start] + [tags[n].integer(order) for n in (EXIF_IFD, GPS_IFD) if n in tags]
    return any(e.where >= where for o in offsets for e in entries_of(exif, o)) or max(offsets) >= where
