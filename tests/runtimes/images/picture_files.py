"""Small PNG, JPEG and EXIF put together byte by byte."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def rgb(channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 24, channels)).astype(dtype)
    return pixels[:, :, 0] if channels == 1 else pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb()).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunk(*c) for c in chunks) + data[33:]


def jpeg(*segments: tuple[int, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb()).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    extra = b"".join(bytes((0xFF, m)) + (len(p) + 2).to_bytes(2, "big") + p for m, p in segments)
    return data[:20] + extra + data[20:]


def exif_block(
    tags: dict[int, tuple[int, list[int] | bytes]],
    sub: dict[int, tuple[int, list[int] | bytes]] | None = None,
    thumbnail: bytes = b"",
) -> bytes:
    """Little-endian EXIF: ``tags`` and ``sub`` are number -> (type, values); ``thumbnail`` a JPEG of a second
    directory."""

    def directory(entries: dict[int, tuple[int, list[int] | bytes]], at: int, following: int = 0) -> bytes:
        out, data = struct.pack("<H", len(entries)), b""
        behind = at + 2 + 12 * len(entries) + 4
        for number, (kind, values) in sorted(entries.items()):
            code = {3: "H", 4: "I", 5: "I"}.get(kind)
            value = struct.pack(f"<{len(values)}{code}", *values) if code else bytes(values)
            count = len(values) // 2 if kind == 5 else len(values)
            if len(value) > 4:
                place, data = struct.pack("<I", behind + len(data)), data + value + b"\0" * (len(value) % 2)
            else:
                place = value.ljust(4, b"\0")
            out += struct.pack("<HHI", number, kind, count) + place
        return out + struct.pack("<I", following) + data

    main = dict(tags)
    if sub:
        main[0x8769] = (4, [0])
    size = len(directory(main, 8))
    inner = directory(sub, 8 + size) if sub else b""
    if sub:
        main[0x8769] = (4, [8 + size])
    block = b"II*\0\x08\0\0\0" + directory(main, 8, 8 + size + len(inner) if thumbnail else 0) + inner
    if thumbnail:
        second = {0x0201: (4, [0]), 0x0202: (4, [len(thumbnail)])}
        end = len(block) + len(directory(second, len(block)))
        second[0x0201] = (4, [end])
        block += directory(second, len(block)) + thumbnail
    return block
