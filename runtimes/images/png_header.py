"""What a PNG says before and around its pixels: every chunk is used, handed on, or named in a note."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from clusir.errors import ImageError
from clusir.runtimes.images.metadata.exif import plain_exif
from clusir.runtimes.images.metadata.xmp import plain_xmp
from clusir.runtimes.images.picture import Extra, Limits

__all__ = ["SIGNATURE", "PngHeader", "png_chunks", "read_header"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STORED = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_COLOUR = (b"gAMA", b"cHRM", b"cICP", b"mDCV", b"mDCv", b"cLLI", b"cLLi")
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_USED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"pHYs")
# gAMA, cHRM and cICP of sRGB: they say what files without them are taken for.
_SRGB = {
    b"gAMA": (struct.pack(">I", 45455), struct.pack(">I", 45454)),
    b"cHRM": (struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),),
    b"cICP": (bytes((1, 13, 0, 1)),),
}
_MAX_KEPT = 16 << 20


@dataclass
class PngHeader:
    """``depth`` and ``colour_type`` as in the file. ``transparency`` is its tRNS, ``palette`` its PLTE."""

    width: int = 0
    height: int = 0
    depth: int = 0
    colour_type: int = 0
    interlaced: bool = False
    frames: int = 1
    palette: bytes = b""
    transparency: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    physical: tuple[int, int, int] | None = None
    extras: list[Extra] = field(default_factory=list)

    @property
    def stored_channels(self) -> int:
        """Samples a pixel in the file."""
        return _STORED[self.colour_type]

    @property
    def channels(self) -> int:
        """Channels of the picture: a palette is RGB, a transparent colour is alpha."""
        colours = 3 if self.colour_type == 3 else self.stored_channels
        return colours + (self.transparency is not None and self.colour_type in (0, 2, 3))

    @property
    def stride(self) -> int:
        """Bytes of a row, without its filter byte."""
        return self.row_bytes(self.width)

    def row_bytes(self, width: int) -> int:
        return -(-width * self.stored_channels * self.depth // 8)


def png_chunks(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
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
    header: PngHeader | None = None
    chunks: list[tuple[bytes, bytes]] = []
    total = 0
    with path.open("rb") as stream:
        for kind, length in png_chunks(stream, path.stat().st_size):
            if header is None:
                if kind != b"IHDR":
                    raise ImageError("not a PNG: it does not begin with its header chunk")
                header = _header(stream.read(length), stream.read(4))
                continue
            bound = {b"eXIf": limits.exif_bytes, b"iCCP": limits.icc_bytes}.get(kind, _MAX_KEPT)
            if kind in (b"IDAT", b"fdAT"):
                continue
            total += length
            if length > bound or total > 2 * _MAX_KEPT:
                name = {b"eXIf": "EXIF", b"iCCP": "ICC"}.get(kind, kind.decode("latin1"))
                raise ImageError(f"its {name} block of {length} bytes is over the {bound} allowed; strip it")
            chunks.append((kind, stream.read(length)))
    if header is None:
        raise ImageError("truncated: it ends before its header")
    for kind, data in chunks:
        _take(header, kind, data, limits)
    _judge_colour(header)
    if header.colour_type == 3 and not header.palette:
        raise ImageError("damaged: it has no palette")
    return header


def _header(data: bytes, crc: bytes) -> PngHeader:
    if len(data) != 13 or len(crc) < 4 or struct.unpack(">I", crc)[0] != zlib.crc32(b"IHDR" + data):
        raise ImageError("damaged: the checksum of its header is wrong")
    width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", data)
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    if not width or not height or depth not in depths.get(colour, ()) or packing or filtering or interlace > 1:
        raise ImageError(f"damaged: a header of {width}x{height} pixels, {depth} bit, colour type {colour} is not PNG")
    return PngHeader(width, height, depth, colour, bool(interlace))


def _take(header: PngHeader, kind: bytes, data: bytes, limits: Limits) -> None:
    name = kind.decode("latin1")
    if kind == b"acTL" and len(data) >= 4:
        header.frames = struct.unpack_from(">I", data)[0]
    elif kind == b"PLTE":
        header.palette = data[:768]
    elif kind == b"tRNS" and header.colour_type in (0, 2, 3):
        header.transparency = data if len(data) >= {0: 2, 2: 6, 3: 1}[header.colour_type] else None
    elif kind == b"iCCP" and header.icc is None:
        header.icc = _inflated(data.partition(b"\0")[2][1:], limits.icc_bytes, "ICC profile")
    elif kind == b"eXIf":
        header.exif = plain_exif(data)
    elif kind == b"pHYs" and len(data) == 9:
        header.physical = struct.unpack(">IIB", data)
    elif kind in _TEXT:
        _take_text(header, kind, data, limits)
    elif kind in _COLOUR:
        header.extras.append(Extra("png_colour", data, name))
    elif kind == b"sRGB":
        header.extras.append(Extra("srgb", data, name))
    elif kind not in _USED:
        copied = bool(kind[3] & 0x20) and kind[0] & 0x20  # the standard's bits: safe to copy, ancillary
        header.extras.append(Extra("png_other" if copied else "tied", data, name))


def _take_text(header: PngHeader, kind: bytes, data: bytes, limits: Limits) -> None:
    keyword, _, rest = data.partition(b"\0")
    if kind == b"iTXt" and keyword == _XMP_KEYWORD and len(rest) > 2:
        body = rest[2:].split(b"\0", 2)[-1]
        text = _inflated(body, limits.exif_bytes, "XMP") if rest[0] else body
        if text is not None:
            header.xmp = plain_xmp(text)
            return
    raw = re.fullmatch(rb"Raw profile type (exif|APP1|xmp)", keyword)
    if raw and kind in (b"zTXt", b"tEXt"):
        text = _inflated(rest[1:], 4 * limits.exif_bytes, "EXIF") if kind == b"zTXt" else rest
        block = _from_hex(text or b"")
        if block is not None and raw[1] == b"xmp":
            header.xmp = header.xmp or plain_xmp(block)
            return
        if block is not None and (block.startswith((b"Exif\0\0", b"II*\0", b"MM\0*"))):
            header.exif = header.exif or plain_exif(block)
            return
    header.extras.append(Extra("text", data, kind.decode() + " " + keyword[:79].decode("latin1")))


def _from_hex(text: bytes) -> bytes | None:
    """ImageMagick's old way to put blocks into text: a name, a length, hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        return None


def _inflated(packed: bytes, limit: int, what: str) -> bytes | None:
    try:
        text = zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:
        return None  # a broken profile is no reason to refuse the pixels; readers ignore it too
    if len(text) > limit:
        raise ImageError(f"its {what} inflates to more than the {limit} bytes allowed; strip it")
    return text


def _judge_colour(header: PngHeader) -> None:
    """Chunks that say no more than sRGB does, or that a profile or sRGB outranks, are lost without harm."""
    names = {e.name for e in header.extras}
    # cICP outranks iCCP, which outranks sRGB, which outranks gAMA and cHRM (PNG, third edition, section 4.3).
    outranked = header.icc is not None or "sRGB" in names
    plain = all(e.data in _SRGB[e.name.encode()] for e in header.extras if e.name in ("gAMA", "cHRM"))
    for i, extra in enumerate(header.extras):
        harmless = extra.name in ("gAMA", "cHRM") and (outranked or plain)
        if harmless or (extra.name == "cICP" and extra.data in _SRGB[b"cICP"]):
            header.extras[i] = Extra("srgb", extra.data, extra.name)
