"""The marker segments of a JPEG file, read and put in; and whether a file without its end has all its pixels."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from clusir.errors import ImageError

__all__ = ["EXTENDED_XMP", "MAX_SEGMENT", "JpegParts", "parse_jpeg", "segment", "split_icc", "split_xmp"]

XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
MAX_SEGMENT = 65533
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
_NAMES = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xCB: "lossless "
"arithmetic",
          0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical", 0xF7: "JPEG-LS"}  # fmt: skip


@dataclass
class JpegParts:
    """``segments`` are (marker, payload) before the first scan but for tables, in their order. ``end`` is where the
    picture ends: behind its end marker, or the length of the file where that is missing (``ended`` false).
    ``complete``: every coefficient of every component has been refined to its last bit by some scan."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    components: int = 0
    progressive: bool = False
    ended: bool = False
    end: int = 0
    complete: bool = False


def parse_jpeg(data: bytes) -> JpegParts:
    """The parts of a JPEG file. Raises ImageError for a kind of JPEG that is not decoded (12 bit, lossless,
    hierarchical), by its name; what is damaged is left to the decoder."""
    parts = JpegParts(end=len(data))
    at, scans = 2, 0
    refined: dict[int, set[int]] = {}
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 2 > len(data):
            break
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker in (0x00, 0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        if marker == 0xD9:
            parts.end, parts.ended = at, True
            break
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        payload = data[at + 2 : at + length]
        if length < 2:
            break
        if marker in _FRAMES:
            _frame(marker, payload, parts)
        elif marker == 0xDA:
            scans += 1
            _refine(payload, parts, refined)
        elif (0xE0 <= marker <= 0xEF or marker == 0xFE) and not scans:
            parts.segments.append((marker, payload))
        at += length
    parts.complete = bool(parts.components) and len(refined) == parts.components
    parts.complete = parts.complete and all(len(done) == 64 for done in refined.values())
    return parts


def _frame(marker: int, payload: bytes, parts: JpegParts) -> None:
    if marker in _NAMES:
        raise ImageError(f"{_NAMES[marker]} JPEG is not read; save it as baseline JPEG, PNG or TIFF")
    if len(payload) < 6:
        return
    if payload[0] != 8:
        raise ImageError(f"{payload[0]}-bit JPEG is not read; save it with 8 bit, or as 16-bit PNG or TIFF")
    width, parts.components = struct.unpack_from(">H", payload, 3)[0], payload[5]
    height = struct.unpack_from(">H", payload, 1)[0]
    if parts.components not in (1, 3, 4):
        raise ImageError(f"a JPEG of {parts.components} channels is not read; save it as grey or RGB")
    if max(width, height) > 65500:
        raise ImageError(f"a JPEG of {width}x{height} pixels is not read: the decoder ends at 65500 a side")
    parts.progressive = marker in (0xC2, 0xCA)


def _refine(payload: bytes, parts: JpegParts, refined: dict[int, set[int]]) -> None:
    if not payload or len(payload) < 1 + 2 * payload[0] + 3:
        return
    first, last, bits = payload[1 + 2 * payload[0] :][:3]
    span = range(first, last + 1) if parts.progressive else range(64)
    for i in range(payload[0]):
        done = refined.setdefault(payload[1 + 2 * i], set())
        if not parts.progressive or bits & 15 == 0:
            done.update(k for k in span if k < 64)


def segment(marker: int, payload: bytes) -> bytes:
    """A marker segment's bytes; ``payload`` holds at most :data:`MAX_SEGMENT`."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def split_icc(icc: bytes) -> list[bytes]:
    """A profile as payloads of APP2 (ICC.1:2010, annex B.4)."""
    size = MAX_SEGMENT - 14
    pieces = [icc[i : i + size] for i in range(0, len(icc), size)]
    return [b"ICC_PROFILE\0" + bytes((i + 1, len(pieces))) + piece for i, piece in enumerate(pieces)]


def split_xmp(xmp: bytes) -> list[bytes]:
    """A packet as payloads of APP1; a long one as a stub that names an extension, and the extension in pieces (XMP
    Specification Part 3, section 1.1.3.1)."""
    if len(XMP) + len(xmp) <= MAX_SEGMENT:
        return [XMP + xmp]
    name = hashlib.md5(xmp, usedforsecurity=False).hexdigest().upper()
    stub = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
        f'xmpNote:HasExtendedXMP="{name}"/></rdf:RDF></x:xmpmeta>'
    )
    size = MAX_SEGMENT - len(EXTENDED_XMP) - 40
    pieces = [
        EXTENDED_XMP + name.encode() + struct.pack(">II", len(xmp), i) + xmp[i : i + size]
        for i in range(0, len(xmp), size)
    ]
    return [XMP + stub.encode(), *pieces]
