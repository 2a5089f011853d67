"""Random damage to pictures and models: an answer or one of our errors, in bounded time and memory.

``CLUSIR_FUZZ=10000 pytest tests/runtimes/test_fuzz.py`` runs the full count; the default is a sample of it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import hostile_files
import models
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clusir.errors import ImageError, ModelFormatError
from clusir.runtimes.images.metadata.exif import settled_exif
from clusir.runtimes.images.metadata.tags import LAYOUT_TAGS, build_block, read_orientation
from clusir.runtimes.images.open import open_picture
from clusir.runtimes.images.picture import Limits
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

COUNT = int(os.environ.get("CLUSIR_FUZZ", "300"))
FUZZ = settings(
    max_examples=COUNT, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIMITS = Limits(pixels=1 << 20, decoded_bytes=64 << 20)
MEMORY_BYTES = 400 << 20


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x829A] = 0.004
    grey16 = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    made = [
        hostile_files.encoded(hostile_files.photo(), kind, **options)
        for kind, options in [
            ("PNG", {"exif": exif}),
            ("JPEG", {"exif": exif, "dpi": (72, 72)}),
            ("JPEG", {"progressive": True}),
            ("TIFF", {"exif": exif}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("WEBP", {"lossless": True, "exif": exif}),
            ("WEBP", {}),
            ("BMP", {}),
            ("GIF", {}),
        ]
    ]
    made.append(hostile_files.encoded(grey16, "PNG"))
    made += [b"", hostile_files.bomb_png(30000, 30000), hostile_files.huge_exif_png()[:70000]]
    return made


SEEDS = seeds()
TIFFS = [s for s in SEEDS if s[:2] in (b"II", b"MM")]
T = TypeVar("T")


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """No more memory than the cap on top of what there was, and an alarm instead of a hang."""

    def hang(*_: object) -> None:
        raise TimeoutError("an input took more than 60 seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, hang)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES


def attempt(call: Callable[[], T], allowed: type[Exception]) -> tuple[T | None, str]:
    """What ``call`` returns, or the message of the one kind of error that it may raise."""
    try:
        return call(), ""
    except allowed as error:
        return None, str(error)


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals with bytes changed, cut, repeated, or another's end."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        # Headers are where decisions are made: half of the damage goes into the first 200 bytes.
        top = len(data) - 1
        at = draw(st.integers(0, min(200, top)) | st.integers(0, top))
        kind = draw(st.sampled_from(("set", "flip", "cut", "insert", "number", "splice")))
        if kind == "set":
            data[at] = draw(st.integers(0, 255))
        elif kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=32))
        elif kind == "number":
            data[at : at + 4] = draw(st.sampled_from((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x80")))
        else:
            other = draw(st.sampled_from(originals))
            data = data[:at] + other[at:]
    return bytes(data)


@FUZZ
@given(data=damaged(SEEDS), suffix=st.sampled_from((".png", ".jpg", ".tif", ".webp", ".bmp", ".dat")))
def test_damaged_pictures(tmp_path: Path, data: bytes, suffix: str) -> None:
    signal.alarm(60)
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(data)
    picture, refusal = attempt(lambda: open_picture(path, LIMITS), ImageError)
    if picture is None:
        assert "\n" not in refusal
        assert refusal.startswith(str(path))
        return
    pixels = picture.rows(0, picture.height)
    assert pixels.shape == (picture.height, picture.width, picture.channels)
    assert pixels.dtype == picture.info.dtype


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return models.save_identity(tmp_path_factory.mktemp("model") / "m.onnx").read_bytes()


@FUZZ
@given(st.data())
def test_damaged_models(tmp_path: Path, model_bytes: bytes, data: st.DataObject) -> None:
    signal.alarm(60)
    path = tmp_path / "m.onnx"
    path.write_bytes(data.draw(damaged([model_bytes, b"", b"\x72\x05\x0a\x03abc"])))
    _, refusal = attempt(lambda: ModelSpec.from_metadata(read_metadata(path)), ModelFormatError)
    assert "\n" not in refusal


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@FUZZ
@given(
    key=st.sampled_from([f.name for f in fields(ModelSpec)]), value=json_values.map(json.dumps) | st.text(max_size=30)
)
def test_absurd_metadata(key: str, value: str) -> None:
    signal.alarm(60)
    metadata = models.spec().to_metadata() | {f"clusir.{key}": value}
    spec, refusal = attempt(lambda: ModelSpec.from_metadata(metadata), ModelFormatError)
    assert "\n" not in refusal
    assert spec is None or spec.size.padded(spec.tile_px) == spec.tile_px


@FUZZ
@given(data=damaged(TIFFS))
def test_damaged_exif(data: bytes) -> None:
    signal.alarm(60)
    assert 0 <= read_orientation(data) <= 8
    settled, _ = settled_exif(data, 6, 20, 30)
    assert settled is None or len(settled) <= len(data)
    assert read_orientation(settled) <= 1
    build_block(data, LAYOUT_TAGS)


def test_the_undamaged_seeds_open(tmp_path: Path) -> None:
    """The fuzz starts from pictures that are read, and the limit that bounds it is enforced."""
    opened = 0
    for i, data in enumerate(SEEDS):
        path = tmp_path / f"{i}.dat"
        path.write_bytes(data)
        try:
            open_picture(path, LIMITS)
            opened += 1
        except ImageError:
            continue
    assert opened == 10
    tifffile.imwrite(tmp_path / "wide.tif", np.zeros((1100, 1000, 3), np.uint8))
    with pytest.raises(ImageError, match="pixels are over"):
        open_picture(tmp_path / "wide.tif", LIMITS)
