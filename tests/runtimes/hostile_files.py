"""Bad files of every kind, each with a word that its refusal must hold."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def photo(seed: int = 0, size: tuple[int, int] = (24, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(0, 2, (*size, 3)), axis=1) + 128
    return Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(width: int, height: int) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(5000))) + png_chunk(b"IEND", b"")


def huge_exif_png() -> bytes:
    data = encoded(photo(), "PNG")
    return data[:33] + png_chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0" + bytes(2 << 20)) + data[33:]


def write_twelve(folder: Path) -> dict[str, str]:
    """The twelve kinds of the batch test: file name -> a part of the reason."""
    animation = [photo(i) for i in range(3)]
    contents = {
        "truncated.png": (encoded(photo(), "PNG")[:-400], "truncated"),
        "zero.jpg": (b"", "empty"),
        "wrong_suffix.jpg": (encoded(photo(), "PNG"), "the content is PNG"),
        "bomb.png": (bomb_png(60000, 60000), "pixels"),
        "text.png": (b"this is not a picture\n" * 20, "not a picture"),
        "animated.gif": (encoded(animation[0], "GIF", save_all=True, append_images=animation[1:]), "3 frames"),
        "cmyk.jpg": (encoded(photo().convert("CMYK"), "JPEG"), "CMYK"),
        "huge_exif.png": (huge_exif_png(), "EXIF"),
    }
    reasons = {}
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        reasons[name] = reason
    (folder / "folder.png").mkdir()
    reasons["folder.png"] = "folder"
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    reasons["broken_link.png"] = "broken link"
    nan = np.full((20, 20), 0.5, np.float32)
    nan[3, 3] = np.nan
    tifffile.imwrite(folder / "nan.tif", nan)
    reasons["nan.tif"] = "NaN"
    (folder / "forbidden.png").write_bytes(encoded(photo(), "PNG"))
    os.chmod(folder / "forbidden.png", 0)
    reasons["forbidden.png"] = "Permission denied"
    return reasons


def more_hostile() -> dict[str, bytes]:
    """Further bad contents; each must be refused in one line, whatever its name."""
    png, jpeg, tiff = encoded(photo(), "PNG"), encoded(photo(), "JPEG"), encoded(photo(), "TIFF")
    webp = encoded(photo(), "WEBP")
    huge_jpeg = bytearray(jpeg)
    at = jpeg.index(b"\xff\xc0")
    huge_jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    wrong_crc = bytearray(png)
    wrong_crc[-20] ^= 0xFF
    return {
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.tif": tiff[: len(tiff) // 2],
        "half.webp": webp[: len(webp) // 2],
        "lying.jpg": bytes(huge_jpeg),
        "lying.png": bomb_png(20000, 20000),
        "crc.png": bytes(wrong_crc),
        "only_signature.png": png[:8],
        "only_header.png": png[:33],
        "chunk_past_end.png": png[:33] + struct.pack(">I4s", 1 << 30, b"tEXt"),
        "icc_bomb.png": png[:33] + png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(64 << 20))) + png[33:],
        "zero_size.png": bomb_png(0, 10),
        "pages.tif": encoded(photo(), "TIFF", save_all=True, append_images=[photo(1)]),
        "animated.png": encoded(photo(), "PNG", save_all=True, append_images=[photo(1)]),
        "animated.webp": encoded(photo(), "WEBP", save_all=True, append_images=[photo(1)]),
        "lab.tif": encoded(photo().convert("LAB"), "TIFF"),
        "script.png": b"#!/bin/sh\nexit 1\n",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
