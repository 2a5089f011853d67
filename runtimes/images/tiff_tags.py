"""TIFF image file directories (IFDs) as data: what EXIF is made of, in JPEG, PNG and WebP as much as in TIFF.

Layout (TIFF 6.0, section 2): ``II*\\0`` or ``MM\\0*``, the offset of the first IFD, and per IFD a count, entries of 12
bytes (tag, type, count, value or its offset) and the offset of the next IFD. Everything read is bounded by the block.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "ORIENTATION",
    "Tag",
    "build_block",
    "read_ifd",
    "read_orientation",
    "reset_orientation",
]

ORIENTATION, EXIF_IFD, GPS_IFD, _INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
_SUB_IFDS = (EXIF_IFD, GPS_IFD, _INTEROP_IFD)
# Bytes of a value: BYTE ASCII SHORT LONG RATIONAL SBYTE UNDEFINED SSHORT SLONG SRATIONAL FLOAT DOUBLE IFD
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MAX_ENTRIES = 4096
Block = bytes | mmap.mmap  # a whole TIFF file is looked into, not read


@dataclass(frozen=True)
class Tag:
    """One entry: number, type, count, and its value's bytes in the order of the block it was read from."""

    number: int
    kind: int
    count: int
    value: bytes


def _order(block: Block) -> str | None:
    return {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])


def _entries(block: Block, offset: int, order: str) -> list[tuple[int, int, int, int, int]]:
    """(position of the entry, tag, type, count, position of the value) of every entry that lies inside the block."""
    if not 8 <= offset <= len(block) - 2:
        return []
    (count,) = struct.unpack_from(order + "H", block, offset)
    found = []
    for i in range(min(count, _MAX_ENTRIES)):
        at = offset + 2 + 12 * i
        if at + 12 > len(block):
            break
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        size = _TYPE_BYTES.get(kind, 0) * number
        where = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        if size and where + size <= len(block):
            found.append((at, tag, kind, number, where))
    return found


def read_ifd(block: Block, offset: int | None = None) -> tuple[str, dict[int, Tag]]:
    """Byte order (``<`` or ``>``) and the entries of the IFD at ``offset`` (None: the first one). Entries that point
    outside the block are left out; a block that is not TIFF has none."""
    order = _order(block)
    if order is None or len(block) < 8:
        return "<", {}
    if offset is None:
        (offset,) = struct.unpack_from(order + "I", block, 4)
    tags = {}
    for _, tag, kind, count, where in _entries(block, offset, order):
        tags[tag] = Tag(tag, kind, count, block[where : where + _TYPE_BYTES[kind] * count])
    return order, tags


def read_orientation(exif: bytes | None) -> int:
    """The orientation 1..8 in an EXIF block; 1 where it has none or a senseless one."""
    if not exif:
        return 1
    order, tags = read_ifd(exif)
    tag = tags.get(ORIENTATION)
    if tag is None or tag.kind not in (3, 4):
        return 1
    (value,) = struct.unpack_from(order + ("H" if tag.kind == 3 else "I"), tag.value)
    return int(value) if 1 <= value <= 8 else 1


def reset_orientation(exif: bytes) -> bytes:
    """The same bytes with orientation 1, in both the main and the thumbnail's directory."""
    order = _order(exif)
    if order is None or len(exif) < 8:
        return exif
    patched = bytearray(exif)
    (offset,) = struct.unpack_from(order + "I", exif, 4)
    for _ in range(2):
        entries = _entries(exif, offset, order)
        for _, tag, kind, _, where in entries:
            if tag == ORIENTATION and kind in (3, 4):
                struct.pack_into(order + ("H" if kind == 3 else "I"), patched, where, 1)
        if not 8 <= offset <= len(exif) - 2:
            break
        end = offset + 2 + 12 * struct.unpack_from(order + "H", exif, offset)[0]
        if end + 4 > len(exif):
            break
        (offset,) = struct.unpack_from(order + "I", exif, end)
    return bytes(patched)


def reset_xmp_orientation(xmp: bytes) -> bytes:
    """The same packet with tiff:Orientation 1, as attribute or element."""
    return re.sub(rb'(tiff:Orientation\s*(?:=\s*["\']|>)\s*)[2-8]', rb"\g<1>1", xmp)


def build_block(source: Block, wanted: frozenset[int], extra: tuple[Tag, ...] = (), order: str | None = None) -> bytes:
    """A new block with the tags of ``source``'s first IFD that are in ``wanted``, their sub-IFDs copied behind, and
    ``extra`` tags (values in ``source``'s byte order, or ``order`` where source is empty)."""
    found, tags = read_ifd(source)
    order = order if order is not None and not tags else found
    kept = {n: t for n, t in tags.items() if n in wanted} | {t.number: t for t in extra}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + pack_ifd(kept, 8, order, source)


def pack_ifd(tags: dict[int, Tag], position: int, order: str, source: Block, depth: int = 0) -> bytes:
    """The bytes of an IFD that starts at ``position`` of its block; sub-IFD tags are followed in ``source``."""
    entries = [struct.pack(order + "H", len(tags))]
    data = b""
    base = position + 2 + 12 * len(tags) + 4
    for number in sorted(tags):
        tag = tags[number]
        value, kind, count = tag.value, tag.kind, tag.count
        if number in _SUB_IFDS and depth < 3 and len(value) == 4:
            _, inner = read_ifd(source, struct.unpack(order + "I", value)[0])
            where = base + len(data)
            data += pack_ifd(inner, where, order, source, depth + 1)
            value, kind, count = struct.pack(order + "I", where), 4, 1
        elif len(value) > 4:
            where = base + len(data)
            data += value + b"\0" * (len(value) % 2)
            value = struct.pack(order + "I", where)
        entries.append(struct.pack(order + "HHI", number, kind, count) + value.ljust(4, b"\0"))
    return b"".join(entries) + b"\0\0\0\0" + data
