"""The table of what is kept: a file for every cell, and the page that shows it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from clusir.runtimes.images.files import open_picture, output_info, save_picture
from clusir.runtimes.images.metadata.keeping import CHANGED, KEPT, NOTED, ROWS, TARGETS, as_markdown
from clusir.runtimes.images.picture import PictureInfo
from tests.runtimes.images.picture_files import jpeg, png, rgb

PAGE = Path(__file__).parents[3] / "docs" / "running.md"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_ICC = ICC[:16] + b"GRAY" + ICC[20:]
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WEBP": ".webp", "AVIF": ".avif", "HEIF": ".heic",
            "JXL": ".jxl", "BMP": ".bmp"}  # fmt: skip
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r dc:title="t"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x78\0\x05fog 3"
PHOTOSHOP = b"8BIM\x04\x04\0\0" + len(IPTC).to_bytes(4, "big") + IPTC
EXIF_BYTES = 0x9286


def exif(maker: bool = False) -> bytes:
    block = Image.Exif()
    block[0x010F] = "maker"
    if maker:
        block.get_ifd(0x8769)[0x927C] = b"\1\2notes"
    return block.tobytes()


def tiff(pixels: np.ndarray | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    found = rgb() if pixels is None else pixels
    tifffile.imwrite(buffer, found, photometric="rgb" if found.ndim == 3 else "minisblack", metadata=None, **options)
    return buffer.getvalue()


def pillow(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def has(name: str) -> Callable[[PictureInfo], bool]:
    return lambda info: bool(getattr(info, name))


def extra(*kinds: str) -> Callable[[PictureInfo], bool]:
    return lambda info: any(e.kind in kinds for e in info.extras)


# For every row: files that hold it, and how it is seen in what was written.
SOURCES: dict[str, tuple[list[tuple[str, bytes]], Callable[[PictureInfo], bool]]] = {
    "sixteen": ([(".tif", tiff(rgb(3, np.uint16)))], lambda i: i.dtype == np.uint16),
    "float": ([(".tif", tiff(np.float32(rgb(1)) / 255))], lambda i: i.dtype != np.uint8),
    "profile": (
        [
            (".jpg", jpeg(icc_profile=ICC)),
            (".png", pillow("PNG", rgb(), icc_profile=ICC)),
            (".tif", tiff(iccprofile=ICC)),
        ],
        has("icc"),
    ),
    "grey_profile": (
        [(".jpg", pillow("JPEG", rgb(1), icc_profile=GREY_ICC))],
        lambda i: (i.icc or b"")[16:20] == b"GRAY",
    ),
    "exif": (
        [(".jpg", jpeg(exif=exif())), (".png", pillow("PNG", rgb(), exif=exif())), (".tif", tiff(description="d"))],
        has("exif"),
    ),
    "maker_note": ([(".jpg", jpeg(exif=exif(True)))], has("exif")),
    "xmp": (
        [
            (".jpg", jpeg(xmp=XMP)),
            (".webp", pillow("WEBP", rgb(), xmp=XMP)),
            (".tif", tiff(extratags=[(700, 1, len(XMP), XMP, True)])),
        ],
        has("xmp"),
    ),
    "resolution": (
        [
            (".png", png((b"pHYs", struct.pack(">IIB", 11811, 7874, 1)))),
            (".tif", tiff(resolution=(300, 200), resolutionunit=2)),
        ],
        has("dpi"),
    ),
    "aspect": ([(".png", png((b"pHYs", struct.pack(">IIB", 2, 1, 0))))], has("aspect")),
    "iptc": ([(".tif", tiff(extratags=[(33723, 7, len(IPTC), IPTC, True)]))], extra("iptc", "photoshop")),
    "photoshop": ([(".jpg", jpeg((0xED, b"Photoshop 3.0\0" + PHOTOSHOP)))], extra("photoshop")),
    "comment": ([(".jpg", jpeg((0xFE, b"print 3")))], extra("comment", "text")),
    "text": ([(".png", png((b"tEXt", b"Author\0me"), (b"iTXt", b"Title\0\0\0\0\0caf\xc3\xa9")))], extra("text")),
    "png_colour": ([(".png", png((b"cICP", bytes((9, 16, 0, 1)))))], extra("png_colour")),
    "srgb": ([(".png", png((b"sRGB", b"\0")))], lambda i: True),
    "png_other": ([(".png", png((b"prVt", b"anything")))], extra("png_other")),
    "tied": ([(".png", png((b"sBIT", b"\5\6\5")))], extra("tied")),
    "segments": ([(".jpg", jpeg((0xEB, b"JP\0\0C2PA")))], extra("segments")),
}


def test_every_row_has_a_file() -> None:
    assert SOURCES.keys() == ROWS.keys()


def converted(folder: Path, suffix: str, data: bytes, target: str) -> tuple[PictureInfo, PictureInfo]:
    """(what was planned, what a reader finds in the file that was written)."""
    (folder / f"a{suffix}").write_bytes(data)
    picture = open_picture(folder / f"a{suffix}")
    info = output_info(picture.info, folder / f"b{SUFFIXES[target]}")
    pixels = picture.rows(0, picture.height)
    top = {"f": 1.0, "u": float(2 ** (8 * pixels.dtype.itemsize) - 1)}[pixels.dtype.kind]
    scaled = pixels / top * (1 if info.dtype == np.float32 else np.iinfo(info.dtype).max)
    save_picture(
        folder / f"b{SUFFIXES[target]}", [np.asarray(scaled + (info.dtype != np.float32) / 2).astype(info.dtype)], info
    )
    return info, open_picture(folder / f"b{SUFFIXES[target]}").info


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ROWS)
def test_every_cell(tmp_path: Path, row: str, target: str) -> None:
    verdict = ROWS[row].verdict(target)
    files, seen = SOURCES[row]
    for suffix, data in files:
        planned, found = converted(tmp_path, suffix, data, target)
        if verdict == NOTED:
            noted = any(ROWS[row].note in note for note in planned.notes) if ROWS[row].note else True
            in_exif = row == "resolution" and planned.exif is not None
            assert noted or in_exif, planned.notes
            assert not seen(found) or row in ("maker_note", "srgb") or in_exif
        else:
            assert seen(found), (row, target, suffix)
            said = any(ROWS[row].how in note for note in planned.notes) if ROWS[row].how else False
            assert said == (verdict == CHANGED and ROWS[row].tell), planned.notes
        if verdict == KEPT:
            assert not planned.notes, planned.notes
    if row == "aspect" and verdict == KEPT:
        assert found.aspect is not None
        assert found.aspect[0] / found.aspect[1] == 2
    if row == "resolution" and verdict != NOTED:
        assert found.dpi is not None
        assert [round(d) for d in found.dpi] == [300, 200]


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split("<!-- python -m clusir.runtimes.images.metadata.keeping -->\n")[1].split("<!-- end -->")[0]
    assert shown == as_markdown(), "python -m clusir.runtimes.images.metadata.keeping prints what belongs there"
