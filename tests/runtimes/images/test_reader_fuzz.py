"""Damaged headers and metadata: read as a reference reader does, or refused in one line; no other picture, no hang.

``CLUSIR_FUZZ=10000`` runs the full count; the default is a sample of it.
"""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from picture_files import exif_block, jpeg, png, rgb
from PIL import Image, ImageOps
from tiff_files import BLACK, PALETTE, RGB, Form, tiff_bytes

from clusir.errors import ImageError
from clusir.runtimes.images.files import Picture, open_picture, output_info, save_picture
from clusir.runtimes.images.picture import Limits

T = TypeVar("T")
COUNT = int(os.environ.get("CLUSIR_FUZZ", "300"))
LIMITS = Limits(pixels=1 << 20, decoded_bytes=64 << 20)
EXIF = exif_block({271: (2, b"Maker\0"), 274: (3, [6]), 282: (5, [300, 1]), 283: (5, [300, 1])}, {0xA002: (4, [24])})
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1"/>'
    b"</x:xmpmeta>"
)


def pillow(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> dict[str, list[bytes]]:
    text = [
        (b"tEXt", b"Author\0me"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"pHYs", struct.pack(">IIB", 9, 9, 1)),
    ]
    palette = {320: (3, list(range(0, 65536, 86))[:768])}
    bits = np.random.default_rng(3).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    return {
        ".png": [png(*text, (b"eXIf", EXIF)), pillow("PNG", rgb(1)), pillow("PNG", rgb(4)), pillow("PNG", rgb(2)),
                 pillow("PNG", rgb(1) // 16, bits=4), png((b"tRNS", struct.pack(">HHH", *map(int, rgb()[3, 3]))))],
        ".jpg": [jpeg((0xE1, b"Exif\0\0" + EXIF), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xFE, b"x")),
                 jpeg(progressive=True), pillow("JPEG", rgb(1), icc_profile=b"\0" * 200)],
        ".webp": [pillow("WEBP", rgb(), lossless=True, exif=b"Exif\0\0" + EXIF, xmp=XMP), pillow("WEBP", rgb(4))],
        ".bmp": [pillow("BMP", rgb()), pillow("BMP", rgb(1)), pillow("BMP", rgb(4))],
        ".tif": [tiff_bytes(rgb(), Form()), tiff_bytes(rgb(), Form(compression=5, predictor=2, tile=16)),
                 tiff_bytes(rgb(4), Form(extra=(2,), planar=True, order=">")),
                 tiff_bytes(rgb(1)[:, :, None], Form(photometric=0)),
                 tiff_bytes(bits[:, :, :1], Form(photometric=PALETTE, compression=32773), palette),
                 tiff_bytes(rgb(1)[:, :, None] // 16, Form(bits=4, photometric=BLACK)),
                 tiff_bytes(rgb(), Form(photometric=RGB, compression=8, rows=20))],
    }  # fmt: skip


SEEDS = seeds()
_NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\1",
    b"\1\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\0\2",
    b"\2\0",
    b"\0\x10",
    b"\x10\0",
)


def damaged(rng: random.Random) -> tuple[str, bytes]:
    suffix = rng.choice(sorted(SEEDS))
    data = bytearray(rng.choice(SEEDS[suffix]))
    for _ in range(rng.randint(1, 4)):
        # Headers are where decisions are made; those of TIFF stand at its end.
        top = len(data) - 1
        head = min(200, top) if suffix != ".tif" else 8
        at = rng.choice((rng.randint(0, head), rng.randint(max(0, top - 400), top), rng.randint(0, top)))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            number = rng.choice(_NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 3:
            del data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
    return suffix, bytes(data)


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What ``call`` returns, or the line of its refusal."""
    try:
        return call(), ""
    except ImageError as error:
        return None, str(error)


def opened(path: Path) -> tuple[Picture, np.ndarray]:
    picture = open_picture(path, LIMITS)
    return picture, picture.rows(0, picture.height)


def reference(path: Path) -> np.ndarray | None:
    """Upright pixels as Pillow reads them, where it reads 8 bit of a kind that has one meaning. Of EXIF with one value
    outside of the file it drops all, the orientation too, and warns; ours (like exiv2) drops that value: no reference.
    """
    try:
        with warnings.catch_warnings(action="error", category=UserWarning), Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1 or image.width * image.height > LIMITS.pixels:
                return None
            if image.mode not in ("L", "LA", "RGB", "RGBA", "P") or "transparency" in image.info:
                return None
            image.load()
            turned = ImageOps.exif_transpose(image)
            pixels = np.asarray(turned.convert("RGB") if image.mode == "P" else turned)
    except Exception:
        return None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise TimeoutError("an input took more than 30 seconds")

    old = signal.signal(signal.SIGALRM, hang)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def test_damaged_files_are_read_as_the_reference_does_or_refused(tmp_path: Path) -> None:
    read, compared, wrong = 0, 0, []
    for seed in range(COUNT):
        signal.alarm(30)
        suffix, data = damaged(random.Random(seed))
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        found, refusal = attempt(partial(opened, path))
        if found is None:
            assert "\n" not in refusal
            assert refusal.startswith(str(path))
            continue
        picture, got = found
        read += 1
        assert got.shape == (picture.height, picture.width, picture.channels)
        for target in ("b.png", "b.jpg", "b.tif", "b.webp"):
            info, refusal = attempt(partial(output_info, picture.info, tmp_path / target, "drop"))
            if info is None:
                assert "floating" in refusal or "pixels a side" in refusal
                continue
            if picture.width * picture.height < 5000:
                save_picture(tmp_path / target, [np.zeros((info.height, info.width, info.channels), info.dtype)], info)
                again = open_picture(tmp_path / target, LIMITS)
                assert (again.width, again.height) == (picture.width, picture.height), (seed, target)
        want = reference(path)
        # A damaged ExtraSamples makes alpha a channel of no stated meaning, which is left out with a note.
        unstated = any("extra channel" in note for note in picture.info.notes)
        if want is None or got.dtype != np.uint8 or unstated:
            continue
        compared += 1
        # Levels of 5 bits are v * 255 / 31: rounded here, cut off by Pillow.
        apart = 1 if suffix == ".bmp" and data[28] == 16 else 0
        if want.shape != got.shape or np.abs(want.astype(int) - got).max() > apart:
            wrong.append((seed, suffix, got.shape, want.shape))
    assert not wrong, wrong
    assert read > COUNT // 10
    assert compared > COUNT // 20
