"""JPEG: its segments are read here, its pixels by Pillow; a file without its end is read where all its pixels are
there."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image, JpegImagePlugin

from clusir.errors import ImageError
from clusir.runtimes.images.metadata.exif import PREFIX, plain_exif
from clusir.runtimes.images.metadata.jpeg_segments import EXTENDED_XMP, XMP, JpegParts
from clusir.runtimes.images.metadata.photoshop import HEADER
from clusir.runtimes.images.metadata.xmp import plain_xmp
from clusir.runtimes.images.picture import Extra, Limits
from clusir.runtimes.images.pillow_open import opened_by_pillow

__all__ = ["JpegFacts", "coding_of", "complete_jpeg", "jpeg_facts"]

_SMALL = "the JFIF thumbnail, which shows the picture as it was, left out"
_TO_THE_DECODER = (0xE0, 0xEE)  # JFIF and Adobe


class JpegFacts:
    """What the segments say, as fields of :class:`clusir.runtimes.images.picture.PictureInfo`, untouched."""

    def __init__(self) -> None:
        self.exif: bytes | None = None
        self.xmp: bytes | None = None
        self.dpi: tuple[float, float] | None = None
        self.aspect: tuple[float, float] | None = None
        self.extras: list[Extra] = []
        self.notes: list[str] = []


def jpeg_facts(data: bytes, parts: JpegParts, limits: Limits) -> JpegFacts:
    """Sort the segments of a file. Raises ImageError where its EXIF is over ``limits``."""
    facts, photoshop, extended = JpegFacts(), b"", b""
    for marker, payload in parts.segments:
        if marker == 0xE1 and payload.startswith(PREFIX):
            facts.exif = facts.exif or plain_exif(payload)
        elif marker == 0xE1 and payload.startswith(XMP):
            facts.xmp = facts.xmp or plain_xmp(payload[len(XMP) :])
        elif marker == 0xE1 and payload.startswith(EXTENDED_XMP):
            extended += payload[len(EXTENDED_XMP) + 40 :]
        elif marker == 0xED and payload.startswith(HEADER):
            photoshop += payload[len(HEADER) :]
        elif marker == 0xFE:
            facts.extras.append(Extra("comment", payload))
        elif marker == 0xE0 and payload.startswith(b"JFIF\0") and len(payload) >= 12:
            _density(payload, facts)
            if payload[12:14].strip(b"\0"):
                facts.notes.append(_SMALL)
        elif marker == 0xE0 and payload.startswith(b"JFXX\0"):
            facts.notes.append(_SMALL)
        elif marker == 0xE2 and payload.startswith((b"ICC_PROFILE\0", b"MPF\0")):
            continue  # Pillow puts the profile together; what MPF lists lies behind the picture
        elif marker not in _TO_THE_DECODER:
            facts.extras.append(Extra("segments", payload, f"APP{marker - 0xE0}{_label(payload)}"))
    if photoshop:
        facts.extras.append(Extra("photoshop", photoshop))
    if facts.exif is not None and len(facts.exif) > limits.exif_bytes:
        raise ImageError(f"its EXIF block of {len(facts.exif)} bytes is over the {limits.exif_bytes} allowed; strip it")
    _join_xmp(facts, extended)
    _say_what_follows(data, parts, facts)
    return facts


def _label(payload: bytes) -> str:
    found = re.match(rb"[A-Za-z][\w .:/-]{2,15}", payload)
    return " " + found[0].decode("ascii").strip() if found else ""


def _density(payload: bytes, facts: JpegFacts) -> None:
    unit, x, y = payload[7], *struct.unpack_from(">HH", payload, 8)
    if x and y and unit in (1, 2):
        scale = 2.54 if unit == 2 else 1.0
        facts.dpi = (x * scale, y * scale)
    elif x and y and x != y:
        facts.aspect = (float(x), float(y))


def _join_xmp(facts: JpegFacts, extended: bytes) -> None:
    """A main packet that only names its extension is replaced by it; of others the extension is left out."""
    if facts.xmp is None or b"HasExtendedXMP" not in facts.xmp:
        return
    bare = re.sub(rb"\s[\w.-]+:HasExtendedXMP\s*=\s*([\"'])[^\"']*\1", b"", facts.xmp)
    bare = re.sub(rb"<([\w.-]+:HasExtendedXMP)>[^<]*</\1>", b"", bare)
    if extended and not re.search(
        rb"<rdf:Description[^>]*?\s(?!rdf:about|xmlns:)[\w.-]+:[\w.-]+\s*=|<(?!/|rdf:|x:|\?)", bare
    ):
        facts.xmp = plain_xmp(extended)
        return
    facts.xmp = bare
    facts.notes.append("the extension of its XMP is left out")


def _say_what_follows(data: bytes, parts: JpegParts, facts: JpegFacts) -> None:
    rest = data[parts.end :]
    if not parts.ended:
        facts.notes.append("its end marker is missing; all pixels are there")
    elif b"ftyp" in rest[:64]:
        facts.notes.append("the film behind the picture is left out")
    elif b"\xff\xd8\xff" in rest:
        facts.notes.append("further pictures behind the first (gain map, depth, second view) are left out")
    elif len(rest.strip(b"\0\xff\r\n ")) > 16:
        facts.notes.append(f"{len(rest)} bytes behind the picture's end are left out")


def complete_jpeg(data: bytes, parts: JpegParts) -> bytes:
    """``data`` with an end. Raises ImageError where pixels are missing.

    Entropy-coded data that is complete is decoded to the same pixels whatever follows it; data that breaks off takes
    what follows for its own. So two different continuations tell them apart.
    """
    if parts.ended:
        return data
    missing = "truncated: its end (marker FF D9) is missing, and pixels with it; take another copy"
    body = data.rstrip(b"\xff")
    if not parts.complete:
        raise ImageError(missing)
    pictures = []
    for filler in (b"\x55", b"\xaa"):
        with opened_by_pillow(io.BytesIO(body + filler * 512 + b"\xff\xd9"), ["JPEG"]) as image:
            pictures.append(np.asarray(image))
    if not np.array_equal(pictures[0], pictures[1]):
        raise ImageError(missing)
    return body + b"\xff\xd9"


def coding_of(image: Image.Image) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Quantisation tables in Pillow's order, and chroma subsampling (0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0, -1 = another)."""
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    tables = tuple(tuple(table) for _, table in sorted(image.quantization.items()))
    return tables, JpegImagePlugin.get_sampling(image) if image.layers in (1, 3) else -1
