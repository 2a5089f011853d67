"""TIFF of every layout: exact to the last bit, or refused by the layout's name.

``CLUSIR_FUZZ=10000`` tries the whole matrix; the default is a sample of it.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from clusir.errors import ImageError
from clusir.runtimes.images.files import open_picture, output_info, save_picture
from tests.needs import program
from tests.runtimes.images.tiff_files import BLACK, CMYK, PALETTE, RGB, WHITE, YCBCR, Form, tiff_bytes

HEIGHT, WIDTH = 21, 19
COUNT = int(os.environ.get("CLUSIR_FUZZ", "300"))
COLOURS = {WHITE: 1, BLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def every_form() -> list[Form]:
    depths = [(b, "u") for b in (1, 2, 4, 6, 8, 10, 12, 14, 16, 32)] + [(8, "i"), (16, "i"), (32, "i")]
    depths += [(16, "f"), (32, "f"), (64, "f")]
    colours = [WHITE, BLACK, RGB, PALETTE, YCBCR]
    extras: list[tuple[int, ...]] = [(), (1,), (2,), (0,), (2, 0), (0, 1)]
    forms = itertools.product(
        depths, colours, extras, (False, True), (0, 16), (1, 5, 8, 32773, 50000), (1, 2, 3), "<>", (False, True)
    )
    found = []
    for (bits, kind), colour, extra, planar, tile, packing, predictor, order, big in forms:
        if colour == PALETTE and (kind != "u" or bits > 8 or extra):
            continue
        if (predictor == 3) != (kind == "f" and predictor != 1) and predictor != 2:
            continue
        if predictor == 2 and bits not in (8, 16, 32, 64):
            continue
        found.append(Form(bits, kind, colour, extra, planar, tile, 7, packing, predictor, order, big))
    return found


FORMS = every_form()
CHOSEN = random.Random(4).sample(FORMS, min(COUNT, len(FORMS)))


def samples_of(form: Form, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (HEIGHT, WIDTH, COLOURS[form.photometric] + len(form.extra))
    if form.kind == "f":
        return rng.uniform(0, 1, shape).astype(f"f{form.bits // 8}")
    if form.kind == "i":
        return rng.integers(0, 1 << (form.bits - 1), shape).astype(f"i{form.bits // 8}")
    stored = np.uint8 if form.bits <= 8 else np.uint16 if form.bits <= 16 else np.uint32
    return rng.integers(0, 1 << form.bits, shape).astype(stored)


def expected(samples: np.ndarray, form: Form, palette: np.ndarray | None = None) -> np.ndarray:
    """By the standard, in double precision and exact integers, one pixel like the other."""
    colours = COLOURS[form.photometric]
    top = 1.0 if form.kind == "f" else float((1 << form.bits) - 1)
    value = samples.astype(np.float64)
    alpha = next((colours + i for i, e in enumerate(form.extra) if e in (1, 2)), None)
    out = value[:, :, :colours]
    if alpha is not None and form.extra[alpha - colours] == 1:
        a = value[:, :, alpha : alpha + 1]
        if form.kind == "f":
            out = np.where(a > 0, out / np.where(a > 0, a, 1), 0)
        else:  # one rounding from what is stored to the full range, half up, in whole numbers
            full, c, o = 255 if form.bits <= 8 else 65535, out.astype(np.int64), np.where(a > 0, a, 1).astype(np.int64)
            out = np.where(a > 0, np.minimum((2 * c * full + o) // (2 * o), full), 0) * (top / full)
    if form.photometric == WHITE:
        out = top - out
    if form.kind == "u" and palette is None:
        full = 255 if form.bits <= 8 else 65535
        out = np.floor(out * full / top + 0.5)
        value = np.floor(value * full / top + 0.5)
    if palette is not None:
        out = palette.T[samples[:, :, 0]] >> 8
    if form.photometric == YCBCR:
        y, cb, cr = (out[:, :, i] - (0, 128, 128)[i] for i in range(3))
        out = np.clip(np.rint(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)), 0, 255)
    return out if alpha is None else np.concatenate([out, value[:, :, alpha : alpha + 1]], axis=2)


def written(path: Path, form: Form, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(samples, what is to be read) of a file of this form."""
    samples = samples_of(form, seed)
    tags, palette = {}, None
    if form.photometric == PALETTE:
        palette = np.random.default_rng(1).integers(0, 256, (3, 1 << form.bits)).astype(np.uint16) * 257
        tags[320] = (3, palette.ravel().tolist())
    if form.photometric == YCBCR:
        tags[530] = (3, [1, 1])
    path.write_bytes(tiff_bytes(samples, form, tags))
    return samples, expected(samples, form, palette)


@pytest.mark.parametrize("form", CHOSEN, ids=range(len(CHOSEN)))
def test_exact_or_refused_by_name(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "a.tif"
    _, want = written(path, form)
    if form.kind == "i" or (form.bits == 32 and form.kind == "u") or (form.photometric == YCBCR and form.bits != 8):
        with pytest.raises(ImageError, match=r"TIFF of \d+-bit"):
            open_picture(path)
        return
    if form.extra and next((e for e in form.extra if e), 0) == 1 and form.photometric in (WHITE, YCBCR):
        with pytest.raises(ImageError, match="premultiplied"):
            open_picture(path)
        return
    picture = open_picture(path)
    got = picture.rows(0, HEIGHT)
    assert got.shape == want.shape
    # Associated alpha in half floats, and YCbCr, are rounded in the order of their own sums.
    slack = 1 if form.photometric == YCBCR else 0 if form.kind == "u" else 2e-3 if form.bits == 16 else 1e-6
    if form.kind == "f" and 1 not in form.extra:
        slack = 1e-7 if form.photometric == WHITE or form.bits == 64 else 0
        slack = 1e-3 if form.photometric == WHITE and form.bits == 16 else slack
    scale = np.maximum(1, np.abs(want)) if form.kind == "f" else 1
    assert not (np.abs(got.astype(np.float64) - want) > slack * scale).any()
    assert sum("extra channel" in note for note in picture.info.notes) == (
        len(form.extra) > (want.shape[2] not in (1, 3))
    )


def test_the_matrix_holds_every_kind() -> None:
    assert len(FORMS) > 5000
    for form in (Form(16, "u", RGB, planar=True), Form(16, "u", WHITE), Form(16, "u", RGB, (1,)), Form(32, "f", BLACK)):
        assert form in FORMS or form.rows == 7


@pytest.mark.parametrize("form", [Form(b, "u", BLACK, reversed_bits=True) for b in (1, 4, 8, 12)])
def test_reversed_bits(tmp_path: Path, form: Form) -> None:
    _, want = written(tmp_path / "a.tif", form)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.tif").rows(0, HEIGHT), want)


@pytest.mark.parametrize("subsampling", [(2, 2), (2, 1), (4, 2), (1, 2), (4, 4)])
@pytest.mark.parametrize("compression", [1, 5, 8])
def test_subsampled_ycbcr(tmp_path: Path, subsampling: tuple[int, int], compression: int) -> None:
    h, v = subsampling
    rng = np.random.default_rng(0)
    rows, down, across = 8, -(-HEIGHT // v), -(-WIDTH // h)
    luma = rng.integers(0, 256, (down * v, across * h)).astype(np.uint8)
    chroma = rng.integers(0, 256, (down, across, 2)).astype(np.uint8)
    units = [
        [np.concatenate([luma[y * v : y * v + v, x * h : x * h + h].ravel(), chroma[y, x]]) for x in range(across)]
        for y in range(down)
    ]
    full = np.dstack([luma, chroma.repeat(v, 0).repeat(h, 1)])[:HEIGHT, :WIDTH]
    form = Form(8, "u", YCBCR, compression=compression)
    strips = [np.concatenate([np.concatenate(r) for r in units[i : i + rows // v]]) for i in range(0, down, rows // v)]
    # A picture of one row of bytes per strip carries the units; its own tags are then replaced.
    from tests.runtimes.images.tiff_files import packed_by_libtiff

    packed = [s.tobytes() if compression == 1 else packed_by_libtiff(s.tobytes(), compression) for s in strips]
    data, offsets = b"", []
    for piece in packed:
        offsets.append(8 + len(data))
        data += piece
    from tests.runtimes.images.tiff_files import _directory

    tags = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8] * 3), 259: (3, [compression]), 262: (3, [YCBCR]),
            273: (4, offsets), 277: (3, [3]), 278: (4, [rows]), 279: (4, [len(p) for p in packed]),
            530: (3, [h, v])}  # fmt: skip
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + _directory(tags, 8 + len(data), "<", False)
    )
    got = open_picture(tmp_path / "a.tif").rows(0, HEIGHT)
    assert np.abs(got - expected(full, form)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [(), (2,), (0,)])
def test_cmyk_by_its_profile(tmp_path: Path, bits: int, extra: tuple[int, ...]) -> None:
    """Without a profile it is refused; with one that is none of CMYK as well."""
    form = Form(bits, "u", CMYK, extra)
    samples = samples_of(form)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(samples, form))
    with pytest.raises(ImageError, match="CMYK without an ICC profile"):
        open_picture(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff_bytes(samples, form, {34675: (7, list(ICC))}))
    with pytest.raises(ImageError, match="CMYK profile cannot be used"):
        open_picture(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({262: (3, [8])}, r"L\*a\*b"),
        ({262: (3, [])}, "PhotometricInterpretation"),
        ({262: (3, [34892])}, "raw photo"),
        ({50706: (1, [1, 4, 0, 0])}, "raw photo"),
        ({258: (3, [8, 8, 5])}, "differ in depth"),
        ({339: (3, [1, 1, 3])}, "differ in format"),
        ({259: (3, [34887])}, "LERC"),
        ({259: (3, [6])}, "old-style JPEG"),
        ({259: (3, [50001])}, "WebP"),
        ({259: (3, [9999])}, "compression scheme 9999"),
        ({317: (3, [7])}, "predictor 7"),
        ({339: (3, [6, 6, 6])}, "complex"),
        ({273: (4, [0, 0, 0])}, "truncated|damaged"),
        ({279: (4, [1, 1, 1])}, "truncated"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, tags: dict[int, tuple[int, list[int]]], word: str) -> None:
    form = Form()
    (tmp_path / "a.tif").write_bytes(tiff_bytes(samples_of(form), form, tags))
    with pytest.raises(ImageError, match=word) as caught:
        open_picture(tmp_path / "a.tif").rows(0, HEIGHT)
    assert "not a picture" not in str(caught.value)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_what_tifffile_writes_is_read(tmp_path: Path, photometric: str) -> None:
    """Everything tifffile writes without further packages."""
    rng = np.random.default_rng(5)
    for dtype in (np.uint8, np.uint16, np.float32):
        shape = (HEIGHT, WIDTH) if photometric == "minisblack" else (HEIGHT, WIDTH, 3)
        pixels = (
            rng.uniform(0, 1, shape).astype(dtype)
            if dtype == np.float32
            else rng.integers(0, np.iinfo(dtype).max, shape, dtype)
        )
        for options in (
            {},
            {"tile": (16, 16)},
            {"compression": "zlib"},
            {"compression": "lzma"},
            {"planarconfig": "separate"},
            {"bigtiff": True},
        ):
            if "planarconfig" in options and photometric == "minisblack":
                continue
            stored = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
            tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, **options)
            got = open_picture(tmp_path / "a.tif").rows(0, HEIGHT)
            np.testing.assert_array_equal(got, pixels.reshape(got.shape))


@pytest.mark.parametrize(
    "options",
    [
        ["-c", "lzw:2"],
        ["-c", "zip:2"],
        ["-c", "packbits"],
        ["-t", "-w", "16", "-l", "16"],
        ["-B"],
        ["-8"],
        ["-f", "lsb2msb"],
    ],
)
def test_what_libtiff_rewrites_is_read(tmp_path: Path, options: list[str]) -> None:
    """Debian's tiffcp in between, in both directions: ours is read by libtiff, libtiff's by us."""
    tiffcp = program("tiffcp", "libtiff")
    for form in (Form(8, "u", RGB), Form(16, "u", RGB, (2,)), Form(16, "u", BLACK), Form(32, "f", BLACK)):
        samples, want = written(tmp_path / "a.tif", form)
        picture = open_picture(tmp_path / "a.tif")
        info = output_info(picture.info, tmp_path / "b.tif")
        save_picture(tmp_path / "b.tif", [picture.rows(0, HEIGHT)], info)
        subprocess.run([tiffcp, *options, tmp_path / "b.tif", tmp_path / "c.tif"], check=True)
        np.testing.assert_array_equal(open_picture(tmp_path / "c.tif").rows(0, HEIGHT), want)
        assert samples.shape == want.shape
