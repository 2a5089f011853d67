"""Round trips: every kind of picture keeps its pixels and everything about them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from clusir.errors import ImageError
from clusir.runtimes.images.files import open_picture, output_info, save_picture
from clusir.runtimes.images.metadata.tags import read_orientation
from clusir.runtimes.images.picture import Limits

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def random_pixels(channels: int, dtype: type = np.uint8, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    rng = np.random.default_rng(channels)
    return rng.integers(0, np.iinfo(dtype).max, (*size, channels), dtype, endpoint=True)


def squeeze(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def copy(source: Path, target: Path, **options: str) -> None:
    picture = open_picture(source)
    info = output_info(picture.info, target, **options)
    pixels = picture.rows(0, picture.height)
    if info.dtype == np.uint8 and pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    bands = [pixels[y : y + 16] for y in range(0, picture.height, 16)]
    save_picture(target, bands, info)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_lossless_round_trip(tmp_path: Path, channels: int, dtype: type, suffix: str) -> None:
    pixels = random_pixels(channels, dtype)
    pixels[5:20] = pixels[5:6]  # flat parts as well, so that every row filter is chosen somewhere
    pixels[:, 10:30] = pixels[:, 10:11]
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    photometric = "rgb" if channels >= 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", squeeze(pixels), photometric=photometric, **options)
    if suffix == ".png":
        first = tmp_path / "a0.png"
        first.write_bytes(encode_png(pixels))
    picture = open_picture(first)
    assert (picture.channels, picture.info.dtype) == (channels, np.dtype(dtype))
    np.testing.assert_array_equal(picture.rows(0, 37), pixels)
    copy(first, second)
    np.testing.assert_array_equal(open_picture(second).rows(0, 37), pixels)
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(second), squeeze(pixels))
    elif dtype == np.uint8 or channels == 1:
        with Image.open(second) as image:
            np.testing.assert_array_equal(np.asarray(image), squeeze(pixels))


def encode_png(pixels: np.ndarray, filters: tuple[int, ...] = (0, 1, 2, 3, 4), extra: bytes = b"") -> bytes:
    """A PNG by the book, one row after the other, with all five filters in turn: independent of the code under test."""
    height, _, channels = pixels.shape
    raw = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).view(np.uint8).reshape(height, -1)
    step = channels * pixels.dtype.itemsize
    above, rows = bytes(raw.shape[1]), []
    for y in range(height):
        row, kind = raw[y].tobytes(), filters[y % len(filters)]
        out = bytearray([kind])
        for i, value in enumerate(row):
            a, b, c = (row[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        rows.append(bytes(out))
        above = row
    head = struct.pack(
        ">IIBBBBB", pixels.shape[1], height, 8 * pixels.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_streamed_png_rows_in_any_bands(
    tmp_path: Path, channels: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusir.runtimes.images import png_header, png_reader

    monkeypatch.setattr(png_reader, "_BAND_BYTES", 500)
    pixels = random_pixels(channels, dtype)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(pixels))
    rows = png_reader.PngRows(path, png_header.read_header(path, Limits()))
    for start, stop in [(0, 3), (2, 10), (10, 11), (20, 37), (0, 5), (5, 30), (12, 20), (0, 37)]:
        np.testing.assert_array_equal(rows.rows(start, stop), pixels[start:stop])


def test_sixteen_bit_gradient_keeps_its_levels(tmp_path: Path) -> None:
    gradient = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(1, -1, 1).repeat(8, axis=0).repeat(3, axis=2)
    for suffix in (".png", ".tif"):
        path = tmp_path / f"g{suffix}"
        tifffile.imwrite(tmp_path / "g0.tif", gradient, photometric="rgb", compression="zlib", predictor=True)
        copy(tmp_path / "g0.tif", path)
        assert len(np.unique(open_picture(path).rows(0, 8))) == 4096


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_tiff_of_every_layout(tmp_path: Path, options: dict[str, object], channels: int) -> None:
    pixels = random_pixels(channels, np.uint16)
    photometric = "rgb" if channels >= 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", squeeze(pixels), photometric=photometric, **options)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.tif").rows(0, 37), pixels)


def exif_block(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker of cameras"
    exif[0x0112] = orientation
    exif[0x8298] = "© somebody"
    exif.get_ifd(0x8769)[0x829A] = 0.004
    exif.get_ifd(0x8769)[0x927C] = b"\x01\x02maker note"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def tags_of(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        exif = image.getexif()
        return {"make": exif.get(0x010F), "rights": exif.get(0x8298), "orientation": exif.get(0x0112, 1)} | {
            hex(n): dict(exif.get_ifd(n)) for n in (0x8769, 0x8825)
        }


@pytest.mark.parametrize("source", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp"])
def test_exif_and_icc_are_carried_over(tmp_path: Path, source: str, target: str) -> None:
    first, second = tmp_path / f"a{source}", tmp_path / f"b{target}"
    image = Image.fromarray(random_pixels(3))
    options = {"lossless": True} if source == ".webp" else {}
    image.save(first, exif=exif_block(6), icc_profile=ICC, **options)
    assert tags_of(first)["orientation"] == 6
    copy(first, second)
    assert tags_of(second) == tags_of(first) | {"orientation": 1}
    with Image.open(second) as image:
        assert image.info["icc_profile"] == ICC
        assert image.size == (37, 53)


def test_exif_of_the_same_format_is_identical_but_for_orientation(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png"):
        first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        Image.fromarray(random_pixels(3)).save(first, exif=exif_block(3))
        copy(first, second)
        before, after = (Image.open(p).info["exif"] for p in (first, second))
        assert len(before) == len(after)
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(changed) == 1
        assert read_orientation(after.removeprefix(b"Exif\0\0")) == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    from PIL import ImageOps

    block = np.zeros((48, 32, 3), np.uint8)
    block[:16, :16], block[16:32, :16], block[:16, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(block).save(path, exif=exif, **options)
    with Image.open(path) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    got = open_picture(path)
    assert got.rows(0, got.height).shape == expected.shape
    assert np.abs(got.rows(0, got.height) - expected).max() <= 2
    copy(path, again)
    once = open_picture(again)
    assert np.abs(once.rows(0, once.height) - expected).max() <= 4


def test_sixteen_bit_png_turned_and_with_transparent_colour(tmp_path: Path) -> None:
    pixels = random_pixels(3, np.uint16)
    exif = chunk(b"eXIf", exif_block(6).removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(encode_png(pixels, extra=exif))
    picture = open_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rows(0, 53), pixels.transpose(1, 0, 2)[:, ::-1])
    assert (picture.height, picture.width) == (53, 37)


def test_palette_bilevel_and_transparency(tmp_path: Path) -> None:
    pixels = random_pixels(4)
    pixels[:, :, 3] = np.where(pixels[:, :, 3] > 128, 255, 0)
    rgba = Image.fromarray(pixels)
    rgba.quantize(16).save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P"
        expected = np.asarray(image.convert("RGBA"))
    picture = open_picture(tmp_path / "p.png")
    assert picture.channels == 4
    assert "palette" in picture.info.notes[0]
    np.testing.assert_array_equal(picture.rows(0, 37), expected)
    Image.fromarray(pixels[:, :, 0]).convert("1").save(tmp_path / "one.png")
    picture = open_picture(tmp_path / "one.png")
    assert picture.channels == 1
    assert set(np.unique(picture.rows(0, 37))) == {0, 255}


def test_grey_stays_grey_in_every_format(tmp_path: Path) -> None:
    Image.fromarray(random_pixels(1)[:, :, 0]).save(tmp_path / "a.png")
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        copy(tmp_path / "a.png", tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as image:
            assert image.mode == "L"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_bit_exact(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    copy(tmp_path / "a.png", tmp_path / f"b{suffix}")
    picture = open_picture(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(picture.rows(0, 37), pixels)


def test_cmyk_needs_its_profile(tmp_path: Path) -> None:
    cmyk = Image.fromarray(random_pixels(4), mode=None).convert("RGB").convert("CMYK")
    cmyk.save(tmp_path / "bare.jpg")
    with pytest.raises(ImageError, match="CMYK without an ICC profile"):
        open_picture(tmp_path / "bare.jpg")
    cmyk.save(tmp_path / "wrong.jpg", icc_profile=ICC)  # an RGB profile cannot explain CMYK numbers
    with pytest.raises(ImageError, match="profile cannot be used"):
        open_picture(tmp_path / "wrong.jpg")


@pytest.mark.parametrize("quality", [30, 90, 98])
def test_jpeg_is_written_at_least_as_fine_as_it_was(tmp_path: Path, quality: int) -> None:
    Image.fromarray(random_pixels(3)).save(tmp_path / "a.jpg", quality=quality, subsampling=0)
    copy(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as a, Image.open(tmp_path / "b.jpg") as b:
        for number, table in a.quantization.items():
            assert all(after <= before for before, after in zip(table, b.quantization[number], strict=True))
    reference = tmp_path / "95.jpg"
    Image.fromarray(random_pixels(3)).save(reference, quality=95)
    with Image.open(reference) as a, Image.open(tmp_path / "b.jpg") as b:
        if quality == 30:
            assert a.quantization == b.quantization  # no finer than needed either


def test_lossless_webp_stays_lossless(tmp_path: Path) -> None:
    pixels = random_pixels(3)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(pixels).save(tmp_path / "lossy.webp", quality=50)
    copy(tmp_path / "a.webp", tmp_path / "b.webp")
    np.testing.assert_array_equal(open_picture(tmp_path / "b.webp").rows(0, 37), pixels)
    assert not open_picture(tmp_path / "lossy.webp").info.lossless


def test_resolution_xmp_and_png_colour_chunks_survive(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="t"/></x:xmpmeta>'
    Image.fromarray(random_pixels(3)).save(tmp_path / "a.jpg", dpi=(300, 300), xmp=xmp)
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        copy(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as image:
            if suffix != ".webp":
                assert [round(float(d)) for d in image.info["dpi"]] == [300, 300]
            found = image.info.get("xmp") or image.tag_v2[700]
            assert bytes(found) == xmp.replace(b'"6"', b'"1"')
    gamma = chunk(b"gAMA", struct.pack(">I", 100000))
    (tmp_path / "g.png").write_bytes(encode_png(random_pixels(3), extra=gamma))
    copy(tmp_path / "g.png", tmp_path / "h.png")
    with Image.open(tmp_path / "h.png") as image:
        assert image.info["gamma"] == 1.0


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    Image.fromarray(random_pixels(3)).save(tmp_path / "a.png")
    info = open_picture(tmp_path / "a.png").info
    target = tmp_path / "out.png"
    target.write_bytes(b"the old one")

    def bands() -> object:
        yield random_pixels(3)[:16]
        raise OSError(28, "No space left on device")

    with pytest.raises(ImageError, match="No space left"):
        save_picture(target, bands(), info)
    assert target.read_bytes() == b"the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "out.png"]


def test_what_a_suffix_cannot_hold(tmp_path: Path) -> None:
    Image.fromarray(random_pixels(4)).save(tmp_path / "a.png")
    info = open_picture(tmp_path / "a.png").info
    for name in ("b.jpg", "b.bmp"):
        with pytest.raises(ImageError, match="holds no alpha"):
            output_info(info, name)
    assert output_info(info, "b.jpg", alpha="drop").channels == 3
    for name in ("b.gif", "b", "b.xyz"):
        with pytest.raises(ImageError, match="cannot be written"):
            output_info(info, name)


def test_buffered_picture_is_complete(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(3)).save(buffer, "BMP")
    (tmp_path / "a.bmp").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(open_picture(tmp_path / "a.bmp").rows(0, 37), random_pixels(3))
