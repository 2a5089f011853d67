"""Layouts of other programs: read right to the last bit or refused by name, and limits known before any work."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.images.files import open_picture, output_info
from tests.runtimes.images.picture_files import chunk, jpeg, rgb
from tests.runtimes.images.tiff_files import BLACK, RGB, Form, tiff_bytes


@pytest.mark.parametrize("suffix", [".dng", ".nef", ".tif"])
def test_a_raw_photo_is_refused_as_raw(tmp_path: Path, suffix: str) -> None:
    small, large = Form(rows=12), Form(photometric=34892)
    preview = tiff_bytes(rgb()[:12, :16], small, {254: (4, [1]), 50706: (1, [1, 4, 0, 0])})
    (tmp_path / f"shot{suffix}").write_bytes(preview)
    with pytest.raises(ImageError, match="raw photo"):
        open_picture(tmp_path / f"shot{suffix}")
    (tmp_path / f"whole{suffix}").write_bytes(tiff_bytes(rgb(), large))
    with pytest.raises(ImageError, match="raw photo"):
        open_picture(tmp_path / f"whole{suffix}")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_transparent_grey_stays_transparent(tmp_path: Path, depth: int, interlaced: bool) -> None:
    rng = np.random.default_rng(depth)
    samples = rng.integers(0, 1 << depth, (18, 24)).astype(np.uint16)
    key = int(samples[3, 5])
    if interlaced:
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        parts = [samples[y::sy, x::sx] for x, y, sx, sy in passes]
    else:
        parts = [samples]
    raw = b""
    for part in parts:
        for row in part if part.size else ():
            text = "".join(f"{int(v):0{depth}b}" for v in row)
            text += "0" * (-len(text) % 8)
            raw += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 18, depth, 0, 0, 0, interlaced))
    body = chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    got = open_picture(tmp_path / "a.png").rows(0, 18)
    top = 65535 if depth == 16 else 255
    np.testing.assert_array_equal(got[:, :, 1], np.where(samples == key, 0, top))
    np.testing.assert_array_equal(got[:, :, 0], samples.astype(np.uint32) * top // ((1 << depth) - 1))


@pytest.mark.parametrize("form", [Form(16, "f", BLACK), Form(64, "f", BLACK), Form(32, "f", BLACK), Form(32, "f", RGB)])
def test_float_tiff(tmp_path: Path, form: Form) -> None:
    values = np.linspace(0, 1, 20 * 24 * 3).reshape(20, 24, 3)[:, :, : 3 if form.photometric == RGB else 1]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(values.astype(f"f{form.bits // 8}"), form))
    picture = open_picture(tmp_path / "a.tif")
    assert picture.info.dtype == np.float32
    assert np.abs(picture.rows(0, 20) - values).max() < 1e-3
    if form.photometric == RGB:
        with pytest.raises(ImageError, match="floating-point"):
            output_info(picture.info, "b.tif")
    else:
        assert output_info(picture.info, "b.tif").dtype == np.float32


@pytest.mark.parametrize(
    ("change", "word"), [((0xC1, 12), "12-bit JPEG"), ((0xC3, 8), "lossless JPEG"), ((0xF7, 8), "JPEG-LS")]
)
def test_other_kinds_of_jpeg_are_named(tmp_path: Path, change: tuple[int, int], word: str) -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = change
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=word):
        open_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize(("target", "limit"), [("b.jpg", "65500"), ("b.webp", "16383")])
def test_sides_are_checked_before_anything_is_done(tmp_path: Path, target: str, limit: str) -> None:
    Image.new("L", (70000, 2)).save(tmp_path / "a.png")
    info = open_picture(tmp_path / "a.png").info
    with pytest.raises(ImageError, match=f"at most {limit} pixels a side, the picture has 70000x2"):
        output_info(info, tmp_path / target)


def pages(*kinds: tuple[int, int]) -> bytes:
    """A TIFF of pages: (NewSubfileType, side in pixels)."""
    data, starts = b"", []
    for _, side in kinds:
        starts.append(8 + len(data))
        data += np.full((side, side, 3), side, np.uint8).tobytes()
    directories, at = b"", 8 + len(data)
    for i, ((kind, side), start) in enumerate(zip(kinds, starts, strict=True)):
        tags = {254: (4, kind), 256: (4, side), 257: (4, side), 258: (3, 8), 259: (3, 1), 262: (3, 2), 273: (4, start),
                277: (3, 3), 278: (4, side), 279: (4, side * side * 3)}  # fmt: skip
        tags.pop(258)
        body = struct.pack("<H", len(tags) + 1)
        size = 2 + 12 * (len(tags) + 1) + 4 + 6
        for number in sorted([*tags, 258]):
            if number == 258:
                body += struct.pack("<HHII", 258, 3, 3, at + size - 6)
            else:
                body += struct.pack("<HHII", number, tags[number][0], 1, tags[number][1])
        following = at + size if i + 1 < len(kinds) else 0
        directories += body + struct.pack("<I", following) + struct.pack("<3H", 8, 8, 8)
        at += size
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directories


@pytest.mark.parametrize(
    "kinds", [[(0, 24), (1, 12)], [(1, 12), (0, 24)], [(0, 24), (1, 12), (1, 6)], [(0, 24), (4, 24)]]
)
def test_the_full_page_is_restored(tmp_path: Path, kinds: list[tuple[int, int]]) -> None:
    (tmp_path / "a.tif").write_bytes(pages(*kinds))
    picture = open_picture(tmp_path / "a.tif")
    assert (picture.width, picture.height) == (24, 24)
    assert (picture.rows(0, 24) == 24).all()
    assert any("page" in n for n in picture.info.notes)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(pages((0, 24), (0, 12)))
    with pytest.raises(ImageError, match="it has 2 pages"):
        open_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("masks", "bits"),
    [((0xF800, 0x7E0, 0x1F, 0), 16), ((0x7C00, 0x3E0, 0x1F, 0), 16), ((0xF00, 0xF0, 0xF, 0xF000), 16),
     ((0xFF0000, 0xFF00, 0xFF, 0), 32), ((0xFF, 0xFF00, 0xFF0000, 0xFF000000), 32), ((0x3FF00000, 0xFFC00, 0x3FF, 0),
     32), ((0xFF000000, 0xFF0000, 0xFF00, 0xFF), 32)],
)  # fmt: skip
@pytest.mark.parametrize("top_down", [False, True])
def test_bmp_of_any_bit_fields(tmp_path: Path, masks: tuple[int, ...], bits: int, top_down: bool) -> None:
    width, height = 7, 5
    words = np.random.default_rng(1).integers(0, 1 << bits, (height, width)).astype(f"<u{bits // 8}")
    rows = b"".join(row.tobytes() + bytes(-len(row.tobytes()) % 4) for row in words)
    head = struct.pack("<IiiHHIIiiII", 108, width, -height if top_down else height, 1, bits, 3, len(rows), 0, 0, 0, 0)
    head += struct.pack("<4I", *masks) + b"BGRs" + bytes(48)
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows
    )
    got = open_picture(tmp_path / "a.bmp").rows(0, height)
    full = 65535 if max(m.bit_count() for m in masks) > 8 else 255
    want = []
    for mask in masks[: 4 if masks[3] else 3]:
        shift, top = (mask & -mask).bit_length() - 1, (1 << mask.bit_count()) - 1
        value = (words.astype(np.int64) & mask) >> shift
        want.append((2 * value * full + top) // (2 * top))
    expected = np.stack(want, axis=2)
    np.testing.assert_array_equal(got, expected if top_down else expected[::-1])
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    data[10:14] = struct.pack("<I", 2)
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(ImageError, match="begin at byte 2, inside its header of 122"):
        open_picture(tmp_path / "a.bmp").rows(0, height)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "raw photo"),
        (b"FUJIFILMCCD-RAW 0201", "raw photo"),
        (b"IIU\0\x18\0\0\0", "raw photo"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"v/1\x01\x02\0\0\0", "OpenEXR"),
        (b"\0\0\0\x18ftypmp42", "a film"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, head: bytes, word: str) -> None:
    (tmp_path / "a.dat").write_bytes(head + bytes(64))
    with pytest.raises(ImageError, match=word):
        open_picture(tmp_path / "a.dat")
