"""Files as other programs write them: nothing false is kept, nothing is lost without a note, limits are known first."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from clusir.errors import ImageError
from clusir.runtimes.images.files import open_picture, output_info, save_picture
from tests.runtimes.images.picture_files import exif_block, jpeg, png, rgb
from tests.runtimes.images.tiff_files import BLACK, Form, tiff_bytes

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def convert(folder: Path, name: str, data: bytes, target: str) -> tuple[bytes, tuple[str, ...]]:
    """(the file that a network which changes nothing leaves behind, its notes)."""
    (folder / name).write_bytes(data)
    picture = open_picture(folder / name)
    info = output_info(picture.info, folder / target)
    pixels = picture.rows(0, picture.height)
    if info.dtype != pixels.dtype:
        top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
        pixels = np.rint(pixels / top * np.iinfo(info.dtype).max).astype(info.dtype)
    save_picture(folder / target, [pixels[:, :, : info.channels]], info)
    return (folder / target).read_bytes(), info.notes


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def segments(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_iptc_and_comment_of_a_jpeg(tmp_path: Path) -> None:
    record = b"\x1c\x02\x19\0\x07harbour"
    block = (
        b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + len(record).to_bytes(4, "big") + record + b"\0" * (len(record) % 2)
    )
    source = jpeg((0xED, block), (0xFE, b"print 3 of 9"), (0xFE, b"second"))
    data, notes = convert(tmp_path, "a.jpg", source, "b.jpg")
    assert (0xED, block) in segments(data)
    assert [p for m, p in segments(data) if m == 0xFE] == [b"print 3 of 9", b"second"]
    assert not notes
    _, notes = convert(tmp_path, "a.jpg", source, "b.webp")
    assert any("IPTC" in n for n in notes)
    assert any("comment" in n for n in notes)


def test_photoshops_thumbnail_is_not_kept(tmp_path: Path) -> None:
    thumbnail = b"8BIM\x04\x0c\0\0" + (8).to_bytes(4, "big") + b"old look"
    url = b"8BIM\x04\x0b\0\0" + (6).to_bytes(4, "big") + b"http:/"
    data, notes = convert(tmp_path, "a.jpg", jpeg((0xED, b"Photoshop 3.0\0" + thumbnail + url)), "b.jpg")
    assert b"old look" not in data
    assert b"http:/" in data
    assert any("thumbnail" in n for n in notes)


def test_text_of_a_png(tmp_path: Path) -> None:
    kept = [
        (b"tEXt", b"parameters\0a red cube"),
        (b"zTXt", b"Long\0\0" + zlib.compress(b"x" * 99)),
        (b"iTXt", b"T\0\0\0\0\0\xc3\xa9"),
    ]
    data, notes = convert(tmp_path, "a.png", png(*kept, (b"sBIT", b"\5\6\5"), (b"tIME", bytes(7))), "b.png")
    assert [c for c in chunks(data) if c[0] in (b"tEXt", b"zTXt", b"iTXt")] == kept
    assert any("sBIT" in n for n in notes)
    assert any("tIME" in n for n in notes)
    _, notes = convert(tmp_path, "a.png", png(*kept), "b.jpg")
    assert any("text" in n and "parameters" in n for n in notes)


def test_tags_of_a_tiff(tmp_path: Path) -> None:
    geo = {269: (2, list(b"sheet 12\0")), 285: (2, list(b"recto\0")), 0x4746: (3, [4]), 33550: (12, [0.5, 0.5, 0.0]),
           33922: (12, [0.0, 0.0, 0.0, 5e5, 4e6, 0.0]), 34735: (3, [1, 1, 0, 1, 1024, 0, 1, 1])}  # fmt: skip
    source = tiff_bytes(rgb(), Form(), geo)
    data, notes = convert(tmp_path, "a.tif", source, "b.tif")
    old, new = opened(source).tag_v2, opened(data).tag_v2
    assert {n: old[n] for n in geo} == {n: new[n] for n in geo}
    assert not notes
    curve = tiff_bytes(rgb(), Form(), {301: (3, [0] * 256)})
    assert any("TransferFunction" in n for n in convert(tmp_path, "a.tif", curve, "b.tif")[1])
    turned = tiff_bytes(rgb(), Form(), geo | {274: (3, [6])})
    data, notes = convert(tmp_path, "a.tif", turned, "b.tif")
    assert 33922 not in opened(data).tag_v2
    assert any("georeference" in n for n in notes)
    rated = exif_block({271: (2, b"Maker\0"), 0x10D: (2, b"album 3\0"), 0x4746: (3, [4])})
    data, _ = convert(tmp_path, "a.jpg", jpeg((0xE1, b"Exif\0\0" + rated)), "b.tif")
    assert (opened(data).tag_v2[0x10D], opened(data).tag_v2[0x4746]) == ("album 3", 4)


GAIN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    b'dc:format="kept" hdrgm:Version="1.0"><Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
    b'<Container:Item Item:Semantic="GainMap"/></rdf:li></rdf:Seq></Container:Directory>'
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("target", ["b.jpg", "b.png"])
def test_a_gain_map_that_is_gone_is_not_promised(tmp_path: Path, target: str) -> None:
    buffer = io.BytesIO()
    more = Image.fromarray(rgb()[:8, :8])
    Image.fromarray(rgb()).save(buffer, "MPO", save_all=True, append_images=[more], xmp=GAIN)
    data, notes = convert(tmp_path, "a.jpg", buffer.getvalue(), target)
    assert b"GainMap" not in data
    assert b"hdrgm:Version" not in data
    assert b"MPF" not in data
    assert b"kept" in data
    assert any("gain map" in n for n in notes)


@pytest.mark.parametrize("target", ["b.jpg", "b.webp", "b.tif", "b.bmp"])
@pytest.mark.parametrize("colour", [(b"gAMA", struct.pack(">I", 100000)), (b"cICP", bytes((9, 16, 0, 1)))])
def test_what_numbers_mean_is_not_lost_in_silence(tmp_path: Path, target: str, colour: tuple[bytes, bytes]) -> None:
    _, notes = convert(tmp_path, "a.png", png(colour), target)
    assert any(colour[0].decode() in n for n in notes)
    harmless = [(b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0")]
    assert not convert(tmp_path, "a.png", png(*harmless), target)[1]


def thumbnail() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb()[:6, :8]).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.webp"])
def test_exif_is_true_of_what_is_written(tmp_path: Path, orientation: int, target: str) -> None:
    sub = {0xA002: (4, [24]), 0xA003: (4, [20]), 0x9214: (3, [5, 6])}
    main = {271: (2, b"Maker\0"), 274: (3, [orientation]), 282: (5, [300, 1]), 283: (5, [200, 1])}
    block = exif_block(main, sub, thumbnail())
    data, notes = convert(tmp_path, "a.jpg", jpeg((0xE1, b"Exif\0\0" + block)), target)
    image = opened(data)
    found = image.getexif()
    inner = found.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003]) == image.size == ((20, 24) if orientation == 6 else (24, 20))
    assert (found[282], found[283]) == ((200, 300) if orientation == 6 else (300, 200))
    assert (found[271], found.get(274, 1)) == ("Maker", 1)
    assert b"\xff\xd8" not in image.info["exif"]
    assert (0x9214 in inner) == (orientation == 1)
    assert any("thumbnail" in n for n in notes)


@pytest.mark.parametrize(
    "form", [b'tiff:Orientation="6"/>', b"><tiff:Orientation>6</tiff:Orientation></rdf:Description>"]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_orientation_in_xmp_alone(tmp_path: Path, form: bytes, suffix: str) -> None:
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        + form
        + b"</x:xmpmeta>"
    )
    if suffix == ".png":
        source = png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    else:
        buffer = io.BytesIO()
        Image.fromarray(rgb()).save(buffer, {".jpg": "JPEG", ".webp": "WEBP"}[suffix], xmp=xmp)
        source = buffer.getvalue()
    data, _ = convert(tmp_path, f"a{suffix}", source, f"b{suffix}")
    image, before = opened(data), np.asarray(opened(source)).astype(int)
    assert np.abs(np.asarray(image).astype(int) - before.transpose(1, 0, 2)[:, ::-1]).mean() < 12
    assert b"6" not in image.info["xmp"][image.info["xmp"].index(b"Orientation") :][:16]


@pytest.mark.parametrize("target", ["b.tif", "b.png", "b.jpg"])
def test_no_resolution_is_invented(tmp_path: Path, target: str) -> None:
    data, _ = convert(tmp_path, "a.tif", tiff_bytes(rgb(1)[:, :, None], Form(photometric=BLACK)), target)
    assert not any(kind == b"pHYs" for kind, _ in chunks(data)) if target == "b.png" else True
    if target == "b.tif":
        assert opened(data).tag_v2.get(296, 1) == 1
    if target == "b.jpg":
        assert segments(data)[0][1][7] == 0


def test_a_grey_profile_does_not_describe_rgb(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rgb(1)).save(buffer, "JPEG", icc_profile=ICC[:16] + b"GRAY" + ICC[20:])
    data, notes = convert(tmp_path, "a.jpg", buffer.getvalue(), "b.webp")
    assert not opened(data).info.get("icc_profile")
    assert any("profile" in n for n in notes)
    buffer = io.BytesIO()
    Image.fromarray(rgb(1)).save(buffer, "PNG", icc_profile=ICC)  # an RGB profile of a grey picture
    data, notes = convert(tmp_path, "a.png", buffer.getvalue(), "b.png")
    assert not opened(data).info.get("icc_profile")
    assert any("profile" in n for n in notes)


def test_cicp_beside_a_profile(tmp_path: Path) -> None:
    both = [(b"cICP", bytes((9, 16, 0, 1))), (b"mDCV", bytes(24)), (b"cLLI", bytes(8))]
    profile = (b"iCCP", b"fallback\0\0" + zlib.compress(ICC))
    data, _ = convert(tmp_path, "a.png", png(*both, profile), "b.png")
    found = dict(chunks(data))
    assert all(found[kind] == value for kind, value in both)
    assert zlib.decompress(found[b"iCCP"].split(b"\0", 1)[1][1:]) == ICC


@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.webp"])
@pytest.mark.parametrize("raw", [False, True])
def test_exif_of_a_png_with_jpegs_prefix_or_as_text(tmp_path: Path, target: str, raw: bool) -> None:
    block = b"Exif\0\0" + exif_block({271: (2, b"Maker\0"), 274: (3, [6])})
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    piece = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) if raw else (b"eXIf", block)
    data, _ = convert(tmp_path, "a.png", png(piece), target)
    image = opened(data)
    assert image.size == (20, 24)
    assert (image.getexif()[271], image.getexif().get(274, 1)) == ("Maker", 1)
    assert b"Exif\0\0Exif\0\0" not in data


def test_long_blocks_in_jpeg(tmp_path: Path) -> None:
    long = exif_block({271: (2, b"Maker\0"), 0x9286: (7, b"x" * 70000)})
    data, notes = convert(tmp_path, "a.png", png((b"eXIf", long)), "b.jpg")
    assert opened(data).size == (24, 20)
    assert any("EXIF of" in n for n in notes)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + b"y" * 80000 + b"</x:xmpmeta>"
    data, notes = convert(tmp_path, "a.png", png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)), "b.jpg")
    assert not notes
    assert data.count(b"y") >= 80000
    assert open_picture(tmp_path / "b.jpg").info.xmp == xmp  # the extension is read again


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"quality": 30}]
)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end(tmp_path: Path, options: dict[str, object], cut: int) -> None:
    whole = jpeg(**options)
    (tmp_path / "a.jpg").write_bytes(whole[:-cut])
    picture = open_picture(tmp_path / "a.jpg")
    np.testing.assert_array_equal(picture.rows(0, 20), np.asarray(opened(whole)))
    assert any("end marker" in n for n in picture.info.notes)
    for less in (30, len(whole) // 3):
        (tmp_path / "a.jpg").write_bytes(whole[:-less])
        with pytest.raises(ImageError, match=r"end \(marker FF D9\) is missing|[Tt]runcated|damaged"):
            open_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".JPEG"])
def test_jpeg_under_all_its_names(tmp_path: Path, suffix: str) -> None:
    data, _ = convert(tmp_path, f"a{suffix}", jpeg(), f"b{suffix}")
    assert opened(data).format == "JPEG"


def test_a_profile_in_a_bmp(tmp_path: Path) -> None:
    pixels = bytes(4 * 4 * 4)
    head = struct.pack("<IiiHHIIiiII", 124, 4, 4, 1, 32, 0, len(pixels), 0, 0, 0, 0)
    head += (
        struct.pack("<4I", 0, 0, 0, 0) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124 + len(pixels), len(ICC), 0)
    )
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(head)) + head + pixels + ICC)
    assert open_picture(tmp_path / "a.bmp").info.icc == ICC


def test_small_pictures_and_unknown_chunks_are_named(tmp_path: Path) -> None:
    _, notes = convert(tmp_path, "a.jpg", jpeg((0xE0, b"JFXX\0\x10" + bytes(20))), "b.jpg")
    assert any("JFIF thumbnail" in n for n in notes)
    buffer = io.BytesIO()
    Image.fromarray(rgb()).save(buffer, "WEBP", lossless=True, exif=b"Exif\0\0" + exif_block({271: (2, b"Maker\0")}))
    data = buffer.getvalue() + b"cust" + struct.pack("<I", 4) + b"data"
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    _, notes = convert(tmp_path, "a.webp", data, "b.webp")
    assert any("cust" in n for n in notes)
