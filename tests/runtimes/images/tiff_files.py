"""TIFFs of any layout, written byte by byte from the standard and independent of the reader under test."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
NAMES = {5: "tiff_lzw", 8: "tiff_adobe_deflate", 32773: "packbits", 50000: "zstd", 32946: "tiff_deflate"}
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 11: "f", 12: "d", 16: "Q"}


@dataclass(frozen=True)
class Form:
    """How samples are stored; ``kind`` is u, i or f; ``extra`` the ExtraSamples; ``tile`` the side of a tile or 0."""

    bits: int = 8
    kind: str = "u"
    photometric: int = RGB
    extra: tuple[int, ...] = ()
    planar: bool = False
    tile: int = 0
    rows: int = 7
    compression: int = 1
    predictor: int = 1
    order: str = "<"
    big: bool = False
    reversed_bits: bool = False


def packed_by_libtiff(data: bytes, compression: int) -> bytes:
    """A stream as libtiff packs it: the strip of a grey picture of one row."""
    buffer = io.BytesIO()
    Image.frombytes("L", (len(data), 1), data).save(buffer, "TIFF", compression=NAMES[compression])
    buffer.seek(0)
    with Image.open(buffer) as image:
        at, size = image.tag_v2[273][0], image.tag_v2[279][0]
    return buffer.getvalue()[at : at + size]


def _differenced(block: np.ndarray, form: Form) -> bytes:
    rows, columns, channels = block.shape
    if form.predictor == 3:
        size = form.bits // 8
        big = np.ascontiguousarray(block.astype(f">f{size}")).view(np.uint8).reshape(rows, columns * channels, size)
        planes = big.transpose(0, 2, 1).reshape(rows, columns * size, channels).astype(np.int16)
        planes[:, 1:] -= planes[:, :-1].copy()
        return (planes & 255).astype(np.uint8).tobytes()
    values = block
    if form.predictor == 2:
        values = np.ascontiguousarray(block).view(f"u{form.bits // 8}").copy()
        values[:, 1:] -= values[:, :-1].copy()
        return values.astype(values.dtype.newbyteorder(form.order)).tobytes()
    if form.bits in (8, 16, 32, 64):
        return block.astype(f"{form.order}{form.kind}{form.bits // 8}").tobytes()
    out = b""
    for row in block.reshape(rows, -1):
        text = "".join(f"{int(v):0{form.bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        out += int(text, 2).to_bytes(len(text) // 8, "big")
    return out


def segment_of(block: np.ndarray, form: Form) -> bytes:
    data = _differenced(block, form)
    if form.compression != 1:
        data = zlib.compress(data) if form.compression == 8 else packed_by_libtiff(data, form.compression)
    if form.reversed_bits:
        data = bytes(int(f"{b:08b}"[::-1], 2) for b in data)
    return data


def tiff_bytes(samples: np.ndarray, form: Form, tags: dict[int, tuple[int, list[int]]] | None = None) -> bytes:
    """The file of samples [H, W, channels]; ``tags`` adds or replaces tags as number -> (type, values)."""
    height, width, channels = samples.shape
    o = form.order
    planes = [samples[:, :, i : i + 1] for i in range(channels)] if form.planar else [samples]
    high, wide = (form.tile, form.tile) if form.tile else (form.rows, width)
    segments = []
    for plane in planes:
        for top in range(0, height, high):
            for left in range(0, width, wide):
                block = plane[top : top + high, left : left + wide]
                if form.tile:
                    missing = ((0, high - block.shape[0]), (0, wide - block.shape[1]), (0, 0))
                    block = np.pad(block, missing)
                segments.append(segment_of(block, form))
    at = 16 if form.big else 8
    offsets, body = [], b""
    for data in segments:
        offsets.append(at + len(body))
        body += data + b"\0" * (len(data) % 2)
    found: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [form.bits] * channels), 259: (3, [form.compression]),
        262: (3, [form.photometric]), 277: (3, [channels]), 284: (3, [2 if form.planar else 1]),
        317: (3, [form.predictor]), 339: (3, [{"u": 1, "i": 2, "f": 3}[form.kind]] * channels),
    }  # fmt: skip
    place, size = (324, 325) if form.tile else (273, 279)
    found |= {place: (4, offsets), size: (4, [len(s) for s in segments])}
    found |= {322: (4, [wide]), 323: (4, [high])} if form.tile else {278: (4, [high])}
    if form.extra:
        found[338] = (3, list(form.extra))
    if form.reversed_bits:
        found[266] = (3, [2])
    found |= tags or {}
    start = at + len(body)
    mark = b"II" if o == "<" else b"MM"
    head = mark + (struct.pack(o + "HHHQ", 43, 8, 0, start) if form.big else struct.pack(o + "HI", 42, start))
    return head + body + _directory(found, start, o, form.big)


def _directory(tags: dict[int, tuple[int, list[int]]], start: int, o: str, big: bool) -> bytes:
    count, entry, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    behind = start + struct.calcsize("<" + count) + entry * len(tags) + (8 if big else 4)
    out, values = struct.pack(o + count, len(tags)), b""
    for number, (kind, numbers) in sorted(tags.items()):
        n = len(numbers) // (2 if kind == 5 else 1)
        if kind in (1, 2, 7):
            data = bytes(numbers)
        else:
            data = struct.pack(f"{o}{len(numbers)}{ {3: 'H', 4: 'I', 5: 'I', 12: 'd', 16: 'Q'}[kind] }", *numbers)
        if len(data) > inline:
            place = struct.pack(o + ("Q" if big else "I"), behind + len(values))
            values += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(inline, b"\0")
        out += struct.pack(o + "HH" + ("Q" if big else "I"), number, kind, n) + place
    return out + bytes(8 if big else 4) + values
