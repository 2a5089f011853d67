"""What users of such commands ran into, as processes: pipes, encodings, replaced files, full disks, other machines."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_files
import models
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clusir.cli.run import main
from clusir.runtimes.images.files import save_picture
from clusir.runtimes.images.picture import PictureInfo
from tests.cli.situations import COMMAND, flat, photo, run, tree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return str(models.save_identity(path, model_spec=models.spec(tile=256, halo=16)))


# Standard input and output


def test_one_picture_through_pipes(model: str, tmp_path: Path) -> None:
    for kind in ("JPEG", "TIFF"):
        data = hostile_files.encoded(hostile_files.photo(), kind)
        done = run("-", "-o", "-", "--model", model, input=data, text=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert b"1 restored" in done.stderr
        with Image.open(io.BytesIO(done.stdout)) as image:
            assert (image.format, image.size) == (kind, (40, 24))
    gif = hostile_files.encoded(hostile_files.photo(), "GIF")
    done = run("-", "-o", "-", "--model", model, "--format", "webp", "--explain", input=gif, text=False, cwd=tmp_path)
    assert done.stdout[8:12] == b"WEBP"
    assert b"standard input (1 tile" in done.stderr
    assert list(tmp_path.iterdir()) == []  # no folder called -


def test_one_end_of_a_pipe(model: str, tmp_path: Path) -> None:
    source = photo(tmp_path / "a.jpg")
    done = run(source, "-o", "-", "--model", model, text=False)
    assert done.stdout.startswith(b"\xff\xd8")
    done = run("-", "-o", tmp_path / "c.png", "--model", model, "--json", input=source.read_bytes(), text=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[0])
    assert (line["input"], line["status"]) == ("standard input", "restored")
    assert (tmp_path / "c.png").is_file()


def test_what_a_pipe_cannot_do_is_a_usage_error(model: str, tmp_path: Path) -> None:
    source = photo(tmp_path / "in" / "a.jpg")
    for arguments, words in (
        ((source, source, "-o", "-"), "hold one picture"),
        ((source.parent, "-o", "-"), "hold one picture"),
        (("-", "-o", tmp_path / "folder"), "standard input has no name"),
        (("-", source, "-o", tmp_path / "x.png"), "hold one picture"),
        ((source, "-o", "-", "--compare"), "--compare needs a file"),
        ((source, "-o", "-", "--json"), "--json wants it as well"),
        (("-", "-o", "-", "--watch"), "--watch needs files"),
        ((source, "-o", "-", "--format", "gif"), "is not one of"),
    ):
        result = CliRunner().invoke(main, [*map(str, arguments), "--model", str(tmp_path / "none.onnx")])
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert words in result.stderr
    for data, words in ((b"", "empty"), (b"text", "not a picture")):
        result = CliRunner().invoke(main, ["-", "-o", "-", "--model", model], input=data)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: standard input: ")
        assert words in result.stderr
    assert tree(tmp_path) == ["in/a.jpg"]


# Folders and globs


def test_a_glob_that_reaches_the_output_folder(model: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg"):
        photo(tmp_path / name)
    for _ in range(3):
        done = run("**/*.jpg", "-o", "out", "--model", model, "--compare", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 restored, 2 skipped")
    assert tree(tmp_path) == [
        *("a.jpg", "out/a.compare.jpg", "out/a.jpg", "out/sub/b.compare.jpg", "out/sub/b.jpg", "sub/b.jpg")
    ]


def test_comparisons_have_names_of_their_own(model: str, tmp_path: Path) -> None:
    values = {"a.jpg": 30, "a.png": 90, "b.jpg": 150, "b.compare.jpg": 210}
    for name, value in values.items():
        flat(tmp_path / "in" / name, value)
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--compare").returncode == 0
    compared = []
    for name in tree(tmp_path / "out"):
        with Image.open(tmp_path / "out" / name) as image:
            level = int(np.asarray(image.convert("L"))[5, 5])
            if image.width > 64:
                compared.append(level)
            else:
                assert abs(level - values[name]) < 3
    assert [round(level / 60 - 0.5) for level in sorted(compared)] == [0, 1, 2, 3]


def test_a_comparison_that_fails_is_made_again_and_one_that_is_missing_is_made(model: str, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png", 1)
    out = tmp_path / "out"
    arguments = (tmp_path / "in", "-o", out, "--model", model, "--compare")
    (out / "a.compare.jpg").mkdir(parents=True)  # its name is taken
    assert run(*arguments).returncode == 0
    assert tree(out) == ["a.png", "a.png.compare.jpg", "b.compare.jpg", "b.png"]
    plain = tmp_path / "plain"
    assert run(tmp_path / "in", "-o", plain, "--model", model).returncode == 0
    done = run(tmp_path / "in", "-o", plain, "--model", model, "--compare", "--report", tmp_path / "r.html")
    assert done.stdout.startswith("0 restored, 2 skipped"), done.stdout
    assert tree(plain) == ["a.compare.jpg", "a.png", "b.compare.jpg", "b.png"]
    assert "done before" in (tmp_path / "r.html").read_text()
    with Image.open(plain / "a.compare.jpg") as image:
        assert image.width == 2 * 40 + 8
    before = (plain / "a.compare.jpg").stat().st_mtime_ns
    assert run(tmp_path / "in", "-o", plain, "--model", model, "--compare").returncode == 0
    assert (plain / "a.compare.jpg").stat().st_mtime_ns == before


def test_a_side_output_that_fails_makes_the_picture_failed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusir.errors import ImageError
    from clusir.runtimes.report import compare

    photo(tmp_path / "in" / "a.png")
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", model, "--compare"]

    def fail(*_: Any, **__: Any) -> None:
        raise ImageError("comparison: no")

    with monkeypatch.context() as patched:
        patched.setattr(compare, "write_comparison", fail)
        first = CliRunner().invoke(main, arguments)
    assert (first.exit_code, "0 restored, 1 failed" in first.stdout) == (1, True), first.output
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 0
    assert "1 restored" in second.stdout
    assert tree(tmp_path / "out") == ["a.compare.jpg", "a.png"]


# What was read, and with what


# Showing


def test_names_that_are_no_text_in_json_and_report(model: str, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "good.png")
    photo(tmp_path / "in" / os.fsdecode(b"bl\xfcte.png"))
    (tmp_path / "in" / os.fsdecode(b"b\xe4d.png")).write_bytes(b"text")
    report = tmp_path / "page.html"
    done = run(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json", "--report", report, text=False)
    assert done.returncode == 1
    page = report.read_bytes().decode("utf-8")
    for name in ("good.png", "bl\\xfcte.png", "b\\xe4d.png"):
        assert name in page
    lines = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.decode("ascii").splitlines()]
    for line in lines:
        json.dumps(line, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    assert sorted(Path(line["input"]).name for line in lines if "input" in line) == [
        *("b\\xe4d.png", "bl\\xfcte.png", "good.png")
    ]


def test_numbers_that_are_none_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from clusir.cli._run_output import _strict

    line = {"posterior": [0.5, float("nan"), float("inf")], "name": "a\udcfc", "deep": {"x": [[float("-inf")]]}}
    assert json.loads(_strict(line)) == {"posterior": [0.5, None, None], "name": "a\\xfc", "deep": {"x": [[None]]}}


# Disks and machines


def test_private_pictures_stay_private(model: str, tmp_path: Path) -> None:
    source = photo(tmp_path / "in" / "a.png")
    source.chmod(0o600)
    photo(tmp_path / "in" / "open.png")
    arguments = (source.parent, "-o", tmp_path / "out", "--model", model, "--compare", "--report", tmp_path / "r.html")
    assert run(*arguments, umask=0o022).returncode == 0
    assert (tmp_path / "r.html").stat().st_mode & 0o777 == 0o600  # it shows the private one too
    assert (tmp_path / "out" / "open.png").stat().st_mode & 0o777 == 0o644
    assert [(tmp_path / "out" / n).stat().st_mode & 0o777 for n in ("a.png", "a.compare.jpg")] == [0o600, 0o600]


def test_a_journal_of_an_earlier_version_is_said(model: str, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".clusir-journal.jsonl").write_text('{"target": "a.png"}\n')
    first, second = (run(tmp_path / "in", "-o", tmp_path / "out", "--model", model) for _ in range(2))
    assert first.stderr.startswith("note: ")
    assert "an earlier version is not read" in first.stderr
    assert (second.returncode, second.stderr) == (0, "")


def test_comparisons_and_reports_count_as_memory(model: str, tmp_path: Path) -> None:
    """Before and after of 16 bit, both in 8 bit, the sheet and its encoding: 350 MB more where unbounded."""
    info = PictureInfo("PNG", 3600, 3600, 3, np.dtype(np.uint16))
    row = np.arange(3600 * 3, dtype=np.uint16).reshape(1, 3600, 3)
    save_picture(tmp_path / "a.png", (row.repeat(100, axis=0) for _ in range(36)), info)
    code = (
        "import resource, subprocess, sys\nassert subprocess.run(sys.argv[1:]).returncode == 0\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    arguments = [tmp_path / "a.png", "-o", tmp_path / "o.png", "--model", model, "--max-memory", "360M", "-q"]
    looks = ["--compare", "--report", tmp_path / "r.html"]
    command = [sys.executable, "-c", code, *COMMAND, *map(str, [*arguments, *looks])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 360 << 20
    with Image.open(tmp_path / "o.compare.jpg") as image:
        assert image.width > 1000  # every second or third pixel, not none
