"""``clusir-run`` says what it passed over and what it could not keep; comparison and report have the right colours."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageCms

from clusir.cli.run import main
from tests.golden.make.standin import write_standin


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("model"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def photo(path: Path, **options: object) -> None:
    ramp = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path, **options)


def test_pictures_that_are_not_read_are_counted(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    photo(folder / "a.jpg")
    for name in ("b.DNG", "c.exr", "d.tga", "e.tga", "notes.txt", ".hidden.dng"):
        (folder / name).write_bytes(b"something")
    for inputs in (folder, folder / "*"):
        done = run(inputs, "-o", tmp_path / "out", "--model", model, "--no-resume")
        assert done.exit_code == 0, done.output
        assert "passed over: 4 pictures are of formats not read here" in done.output
        assert "1 .dng: raw photos: develop them first" in done.output
        assert "2 .tga" in done.output
    done = run(folder, "-o", tmp_path / "out", "--model", model, "--no-resume", "--json")
    summary = json.loads(done.stdout.splitlines()[-1])["summary"]
    assert summary["passed_over"] == {".dng": 1, ".exr": 1, ".tga": 2}
    (folder / "a.jpg").unlink()
    done = run(folder, "-o", tmp_path / "out", "--model", model)
    assert done.exit_code == 2
    assert "passed over: 4 pictures" in done.output


def test_formats_whose_plug_in_is_absent_are_counted_with_what_to_install() -> None:
    code = (
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n.startswith('pillow_') else found(n, *a)\n"
        "from clusir.runtimes.images import formats\n"
        "print(formats.unread_format('.heic'), formats.unread_format('.jxl'), '.heic' in formats.READ_SUFFIXES)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install pillow-heif (or clusir[heif])" in shown
    assert "pillow-jxl-plugin" in shown
    assert "False" in shown


def test_notes_are_shown_one_by_one_for_few_and_counted_for_many(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(11):
        photo(folder / f"{i:02}.png", dpi=(300, 300))
    done = run(folder / "00.png", "-o", tmp_path / "one.webp", "--model", model)
    assert f"note: {folder / '00.png'}: the resolution is left out" in done.output
    done = run(folder, "-o", tmp_path / "out", "--model", model, "--format", "webp")
    assert "note: the resolution is left out (11 pictures)" in done.output
    assert done.output.count("note:") == 1


def shifted_profile() -> bytes:
    """sRGB with red and green exchanged: colours differ from the bare numbers at once."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(icc[128:132], "big"), 12):
        name = bytes(icc[at : at + 4])
        if name in (b"rXYZ", b"gXYZ"):
            icc[at : at + 4] = b"gXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(icc)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_comparison_and_report_are_seen_in_the_right_colours(tmp_path: Path, model: Path, suffix: str) -> None:
    red = Image.new("RGB", (64, 48), (250, 20, 20))
    red.save(tmp_path / "a.png", icc_profile=shifted_profile())
    page = tmp_path / "page.html"
    done = run(tmp_path / "a.png", "-o", tmp_path / f"b{suffix}", "--model", model, "--compare", "--report", page)
    assert done.exit_code == 0, done.output
    (sheet,) = tmp_path.glob("*.compare.jpg")
    pictures = [Image.open(sheet)]
    found = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
    pictures += [Image.open(io.BytesIO(base64.b64decode(p))) for p in found]
    assert len(pictures) >= 3
    for picture in pictures:
        r, g, _ = np.asarray(picture.convert("RGB"))[10, 10]
        assert g > 200 > 100 > r
