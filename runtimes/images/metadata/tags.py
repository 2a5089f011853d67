"""TIFF image file directories (IFDs) as data: what EXIF is made of, in JPEG, PNG and WebP as much as in TIFF.

Layout (TIFF 6.0, section 2): ``II*\\0`` or ``MM\\0*``, the offset of the first IFD, and per IFD a count, entries of 12
bytes (tag, type, count, value or its offset) and the offset of the next IFD. BigTIFF (43 for 42) has the same with 8
bytes for offsets and counts. Everything read is bounded by the block.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "EXIF_IFD",
    "GPS_IFD",
    "LAYOUT_TAGS",
    "MAKER_NOTE",
    "ORIENTATION",
    "PLACE_TAGS",
    "Block",
    "Entry",
    "Tag",
    "build_block",
    "entries_of",
    "first_ifd",
    "has_maker_note",
    "next_ifd",
    "pack_ifd",
    "read_ifd",
    "read_orientation",
]

ORIENTATION, EXIF_IFD, GPS_IFD, _INTEROP_IFD, MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_SUB_IFDS = (EXIF_IFD, GPS_IFD, _INTEROP_IFD)
# What says how the bytes of a TIFF are laid out, or has a place of its own (resolution, XMP, IPTC, ICC, Photoshop),
# or is no longer true of restored pixels (ranges of sample values, layers, raw data). All other tags describe the
# picture.
LAYOUT_TAGS = frozenset(
    (
        *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
        *(288, 289, 290, 291, 292, 293, 296, 297, 301, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 333),
        *(334, 336, 337, 338, 339, 340, 341, 342, 343, 344, 345, 346, 347, 400, 401, 402, 403, 404, 405, 512, 513, 514),
        *(515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 559, 700, 32781, 32995, 32996, 32997, 32998, 33723, 34377),
        *(34675, 34687, 34688, 34689, 34690, 37724, 50838, 50839),
    )
)
# Where the picture lies on the Earth, by rows and columns: not true of a turned picture.
PLACE_TAGS = frozenset((33550, 33920, 33922, 34264))
# Bytes of a value: BYTE ASCII SHORT LONG RATIONAL SBYTE UNDEFINED SSHORT SLONG SRATIONAL FLOAT DOUBLE IFD, BigTIFF's
# 16..18
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BIG_TYPES = (16, 17, 18)
_MAX_ENTRIES = 4096
Block = bytes | mmap.mmap  # a whole TIFF file is looked into, not read


@dataclass(frozen=True)
class Tag:
    """One entry: number, type, count, and its value's bytes in the order of the block it was read from."""

    number: int
    kind: int
    count: int
    value: bytes

    def integer(self, order: str) -> int:
        """The first value, 0 where it is no integer."""
        code = _INTEGERS.get(self.kind)
        return int(struct.unpack_from(order + code, self.value)[0]) if code else 0

    def ratio(self, order: str) -> float | None:
        """The first value as a number; None where it is none, or divides by zero."""
        if self.kind in (5, 10):
            above, below = struct.unpack_from(order + ("II" if self.kind == 5 else "ii"), self.value)
            return above / below if below else None
        if self.kind in (11, 12):
            return float(struct.unpack_from(order + ("f" if self.kind == 11 else "d"), self.value)[0])
        return float(self.integer(order)) if self.kind in _INTEGERS else None


class Entry(NamedTuple):
    """Where an entry lies in its block (``at``), and where its value does (``where``)."""

    at: int
    number: int
    kind: int
    values: int
    where: int


def _form(block: Block) -> tuple[str, bool] | None:
    """Byte order, and whether it is BigTIFF."""
    return {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}.get(block[:4])


def first_ifd(block: Block) -> int:
    """The offset of the first directory, 0 where the block is not TIFF."""
    form = _form(block)
    if form is None or len(block) < 16:
        return 0
    order, big = form
    return int(struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)[0])


def _extent(block: Block, offset: int) -> tuple[str, bool, int, int] | None:
    """(byte order, BigTIFF, entries, where they begin) of the directory at ``offset``; None where there is none."""
    form = _form(block)
    if form is None:
        return None
    order, big = form
    head = 8 if big else 2
    if not 8 <= offset <= len(block) - head:
        return None
    return order, big, struct.unpack_from(order + ("Q" if big else "H"), block, offset)[0], offset + head


def entries_of(block: Block, offset: int) -> list[Entry]:
    """Every entry of the directory at ``offset`` whose value lies inside the block."""
    extent = _extent(block, offset)
    if extent is None:
        return []
    order, big, count, begin = extent
    size, found = (20 if big else 12), []
    for i in range(min(count, _MAX_ENTRIES)):
        at = begin + size * i
        if at + size > len(block):
            break
        number, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), block, at)
        length, inline = _TYPE_BYTES.get(kind, 0) * values, (8 if big else 4)
        where = at + size - inline
        if length > inline:
            where = struct.unpack_from(order + ("Q" if big else "I"), block, where)[0]
        if length and where + length <= len(block):
            found.append(Entry(at, number, kind, values, where))
    return found


def next_ifd(block: Block, offset: int) -> tuple[int, int]:
    """(where the link to the next directory lies, its value); zeros where the block ends before."""
    extent = _extent(block, offset)
    if extent is None:
        return 0, 0
    order, big, count, begin = extent
    at = begin + (20 if big else 12) * count
    if at + (8 if big else 4) > len(block):
        return 0, 0
    return at, int(struct.unpack_from(order + ("Q" if big else "I"), block, at)[0])


def read_ifd(block: Block, offset: int | None = None) -> tuple[str, dict[int, Tag]]:
    """Byte order (``<`` or ``>``) and the entries of the IFD at ``offset`` (None: the first one). Entries that point
    outside the block are left out, and all behind those that together are longer than it; a block that is not TIFF has
    none."""
    form = _form(block)
    if form is None or len(block) < 8:
        return "<", {}
    tags: dict[int, Tag] = {}
    total = 0
    for entry in entries_of(block, first_ifd(block) if offset is None else offset):
        length = _TYPE_BYTES[entry.kind] * entry.values
        total += length
        if total > len(block) + 65536:
            break
        value = block[entry.where : entry.where + length]
        tags.setdefault(entry.number, Tag(entry.number, entry.kind, entry.values, value))
    return form[0], tags


def read_orientation(exif: bytes | None) -> int:
    """The orientation 1..8 in an EXIF block; 1 where it is senseless, 0 where there is none."""
    if not exif:
        return 0
    order, tags = read_ifd(exif)
    tag = tags.get(ORIENTATION)
    if tag is None or tag.kind not in (3, 4):
        return 0
    value = tag.integer(order)
    return value if 1 <= value <= 8 else 1


def has_maker_note(block: bytes | None) -> bool:
    """Whether an EXIF block holds a maker's own data, which may point to places by their offset in the block."""
    order, tags = read_ifd(block or b"")
    return EXIF_IFD in tags and MAKER_NOTE in read_ifd(block or b"", tags[EXIF_IFD].integer(order))[1]


def build_block(
    source: Block, leave_out: frozenset[int], extra: tuple[Tag, ...] = (), directory: int | None = None
) -> bytes:
    """A new block with the tags of one of ``source``'s IFDs (None: the first) but for those in ``leave_out``, their
    sub-IFDs copied behind, and ``extra`` tags (values in ``source``'s byte order). Empty where nothing is left."""
    order, tags = read_ifd(source, directory)
    kept = {n: t for n, t in tags.items() if (n not in leave_out and t.kind not in _BIG_TYPES) or n in _SUB_IFDS}
    kept |= {t.number: t for t in extra}
    if not kept:
        return b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + pack_ifd(kept, 8, order, source)


def pack_ifd(tags: dict[int, Tag], position: int, order: str, source: Block, depth: int = 0) -> bytes:
    """The bytes of a classic IFD that starts at ``position`` of its block; sub-IFD tags are followed in ``source``."""
    tags = {n: t for n, t in tags.items() if t.kind not in _BIG_TYPES or n in _SUB_IFDS}
    entries = [struct.pack(order + "H", len(tags))]
    data = b""
    base = position + 2 + 12 * len(tags) + 4
    for number in sorted(tags):
        tag = tags[number]
        value, kind, count = tag.value, tag.kind, tag.count
        if number in _SUB_IFDS and depth < 3:
            _, inner = read_ifd(source, tag.integer(order))
            where = base + len(data)
            data += pack_ifd(inner, where, order, source, depth + 1)
            value, kind, count = struct.pack(order + "I", where), 4, 1
        elif len(value) > 4:
            where = base + len(data)
            data += value + b"\0" * (len(value) % 2)
            value = struct.pack(order + "I", where)
        entries.append(struct.pack(order + "HHI", number, kind, count) + value.ljust(4, b"\0"))
    return b"".join(entries) + b"\0\0\0\0" + data
