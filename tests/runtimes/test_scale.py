"""Models that enlarge: every row and column becomes ``scale`` of them, in tiles as in one piece, alpha included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageCms

from clusir.cli.run import main
from clusir.errors import ModelFormatError
from clusir.runtimes.images.files import open_picture, save_picture
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.restore.tiling import plan_axis
from clusir.spec import ModelSpec

COMMAND = [sys.executable, "-c", "from clusir.cli.run import main; main()"]


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    """What ``models.save_enlarging`` computes of a picture in one piece, away from its borders."""
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1))
    return windows.mean(axis=(3, 4)).repeat(scale, axis=0).repeat(scale, axis=1)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(5, 7), (64, 64), (65, 150), (200, 90)])
def test_tiles_are_the_whole_picture_enlarged(tmp_path: Path, scale: int, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    with Restorer(models.save_enlarging(tmp_path / "model.onnx", scale), threads=1) as restorer:
        large = restorer.restore(picture)
    assert large.shape == (scale * size[0], scale * size[1], 3)
    inside = (slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
    np.testing.assert_allclose(large[inside], enlarged(picture, scale)[inside], atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_types_and_alpha(tmp_path: Path, dtype: type, channels: int) -> None:
    top = np.iinfo(dtype).max
    size = (90, 130)
    y, x = np.mgrid[: size[0], : size[1]]
    slope = ((np.sin(y / 9) + np.cos(x / 11) + 2) / 4 * top).astype(dtype)
    picture = np.repeat(slope[:, :, None], channels, axis=2)
    path = models.save_enlarging(tmp_path / "model.onnx", 2)
    with Restorer(path, threads=1, alpha="keep") as restorer:
        kept = restorer.restore(picture)
    assert kept.shape == (180, 260, channels)
    assert kept.dtype == dtype
    if channels in (2, 4):
        bicubic = Image.fromarray(slope.astype(np.float32) / top).resize((260, 180), Image.Resampling.BICUBIC)
        expected = np.asarray(bicubic).clip(0, 1) * top
        middle = (slice(16, -16), slice(16, -16))  # the border is padded before it is enlarged
        assert np.abs(kept[..., -1].astype(float) - expected)[middle].max() <= 0.51 + 2e-4 * top
        with Restorer(path, threads=1, alpha="process") as restorer:
            processed = restorer.restore(picture)
        np.testing.assert_array_equal(processed[..., -1], processed[..., 0])  # the same numbers, restored alike
        with Restorer(path, threads=1, alpha="drop") as restorer:
            np.testing.assert_array_equal(restorer.restore(picture), kept[..., :-1])


def test_weights_of_the_large_plan_sum_to_one() -> None:
    spec = ModelSpec(tile_px=64, halo_px=8, scale=3)
    axis = plan_axis(333, spec).enlarged(3, spec.halo_px)
    total = np.zeros(999, np.float32)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        total[start : start + axis.tile] += weights
    np.testing.assert_array_equal(total, 1)


def test_scale_stands_in_the_metadata_with_its_version() -> None:
    spec = ModelSpec(scale=4)
    metadata = spec.to_metadata()
    assert (metadata["clusir.scale"], metadata["clusir.spec_version"]) == ("4", "2")
    assert ModelSpec.from_metadata(metadata) == spec
    assert "clusir.scale" not in ModelSpec().to_metadata()
    with pytest.raises(ModelFormatError, match=r"scale 9 is not within 1\.\.8"):
        ModelSpec(scale=9)


def test_a_file_is_enlarged_and_says_so(tmp_path: Path) -> None:
    """The written file has the large size, also where EXIF and XMP name it."""
    exif = Image.Exif()
    exif[0x0100], exif[0x0101], exif[0x010E] = 90, 60, "a slope"
    exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003], exif.get_ifd(0x8769)[0x9214] = 90, 60, (10, 20, 5, 5)
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:PixelXDimension="90"/></rdf:RDF></x:xmpmeta>'
    )
    source = tmp_path / "small.jpg"
    slope = np.linspace(0, 255, 90 * 60 * 3).reshape(60, 90, 3).astype(np.uint8)
    Image.fromarray(slope).save(source, exif=exif, xmp=xmp)
    model = models.save_enlarging(tmp_path / "model.onnx", 3)
    target = tmp_path / "large.jpg"
    done = CliRunner().invoke(main, [str(source), "-o", str(target), "--model", str(model)])
    assert done.exit_code == 0, done.output
    with Image.open(target) as large:
        assert large.size == (270, 180)
        told = large.getexif()
        assert (told[0x0100], told[0x0101], told[0x010E]) == (270, 180, "a slope")
        assert told.get_ifd(0x8769)[0xA002] == 270
        assert 0x9214 not in told.get_ifd(0x8769)
        assert b'PixelXDimension="270"' in large.info["xmp"]


def test_a_format_that_cannot_hold_the_large_size_refuses_before_any_work(tmp_path: Path) -> None:
    Image.new("RGB", (9000, 4)).save(tmp_path / "wide.png")
    model = models.save_enlarging(tmp_path / "model.onnx", 8)
    done = CliRunner().invoke(main, [str(tmp_path / "wide.png"), "-o", str(tmp_path / "w.jpg"), "--model", str(model)])
    assert done.exit_code == 1
    assert "the picture has 72000x32" in " ".join(done.output.split())


def test_sixteen_bits_alpha_profile_and_sizes_hold_at_four_times(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0100], exif[0x0101] = 70, 50
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    y, x = np.mgrid[:50, :70]
    pixels = np.stack([900 * x, 1200 * y, 400 * (x + y), 65535 - 500 * x], axis=-1).astype(np.uint16)
    info = PictureInfo(
        "PNG", 70, 50, 4, np.dtype(np.uint16), icc=profile, exif=exif.tobytes().removeprefix(b"Exif\0\0")
    )
    save_picture(tmp_path / "small.png", [pixels], info)
    model = models.save_enlarging(tmp_path / "model.onnx", 4)
    arguments = [tmp_path / "small.png", "-o", tmp_path / "large.png", "--model", model]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    large = open_picture(tmp_path / "large.png")
    found = large.info
    assert (found.width, found.height, found.channels, found.dtype) == (280, 200, 4, np.uint16)
    assert found.icc == profile
    with Image.open(tmp_path / "large.png") as image:
        told = image.getexif()
    assert (told[0x0100], told[0x0101]) == (280, 200)
    rows = large.rows(0, 200).astype(np.float64)
    inside = (slice(8, -8), slice(8, -8))
    wanted = enlarged(pixels[..., :3] / 65535, 4) * 65535
    assert np.abs(rows[..., :3] - wanted)[inside].max() <= 1  # nothing is lost to 8 bit on the way
    ramp = 65535 - 500 * ((np.arange(280) + 0.5) / 4 - 0.5)  # bicubic keeps a straight line
    assert np.abs(rows[..., 3] - ramp)[inside].max() <= 2


@pytest.mark.slow
def test_memory_of_what_is_enlarged_is_bounded(tmp_path: Path) -> None:
    """Of 1,100x4,400 pixels come 232 MB; a band of them is held at a time."""
    Image.fromarray(np.zeros((4400, 1100, 3), np.uint8)).save(tmp_path / "small.png", compress_level=1)
    model = models.save_enlarging(tmp_path / "model.onnx", 4)
    code = (
        "import resource, subprocess, sys\nassert subprocess.run(sys.argv[1:]).returncode == 0\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, *COMMAND, "-q", "--max-memory", "300M"]
    files = [tmp_path / "small.png", "-o", tmp_path / "large.png", "--model", model]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 300 << 20
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (4400, 17600)
