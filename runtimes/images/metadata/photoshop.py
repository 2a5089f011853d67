"""Photoshop's image resources (``8BIM``), which carry IPTC in JPEG and TIFF."""

from __future__ import annotations

import struct

__all__ = ["HEADER", "settled_photoshop", "with_iptc"]

HEADER = b"Photoshop 3.0\0"
_IPTC, _RESOLUTION, _THUMBNAILS = 0x0404, 0x03ED, (0x0409, 0x040C)
# What does not depend on where pixels are: IPTC and its digest, copyright, URL, captions, XMP, EXIF's own have no
# place here.
_PLACELESS = (_IPTC, _RESOLUTION, 0x0425, 0x040A, 0x040B, 0x03F0, 0x041B, 0x0419)
_PROFILE, _XMP, _EXIF = 0x040F, 0x0424, (0x0422, 0x0423)


def _resources(block: bytes) -> list[tuple[int, int, int]] | None:
    """(identifier, start, end) of every resource, None where the block is none of resources."""
    found, at = [], 0
    while at < len(block) and block[at : at + 4] in (b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR"):
        if at + 12 > len(block):
            return None
        (number,) = struct.unpack_from(">H", block, at + 4)
        name = block[at + 6] + 1
        body = at + 6 + name + name % 2
        if body + 4 > len(block):
            return None
        (size,) = struct.unpack_from(">I", block, body)
        end = body + 4 + size + size % 2
        if body + 4 + size > len(block):
            return None
        found.append((number, at, min(end, len(block))))
        at = end
    return found if not block[at:].strip(b"\0") else None


def settled_photoshop(block: bytes, orientation: int) -> tuple[bytes, list[str]]:
    """(the resources of a picture turned by ``orientation``, what was taken out): thumbnails, second copies of profile,
    EXIF and XMP, and paths, guides and slices of a picture that was turned."""
    resources = _resources(block)
    if resources is None:
        return block, []
    kept, gone = [], []
    for number, start, end in resources:
        if number in _THUMBNAILS:
            gone.append("Photoshop's thumbnail, which shows the picture as it was")
        elif number in (_PROFILE, _XMP, *_EXIF):
            continue  # the file's own are written
        elif orientation != 1 and number not in _PLACELESS:
            gone.append("Photoshop's paths, guides and slices of the unturned picture")
        else:
            piece = block[start:end]
            if number == _RESOLUTION and orientation >= 5 and end - start >= 28:
                piece = piece[:12] + piece[20:28] + piece[12:20] + piece[28:]
            kept.append(piece + b"\0" * (len(piece) % 2))
    return b"".join(kept), list(dict.fromkeys(gone))


def with_iptc(block: bytes, iptc: bytes) -> bytes:
    """Resources with an IPTC record, unless they have one."""
    if any(number == _IPTC for number, _, _ in _resources(block) or ()):
        return block
    return block + b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
