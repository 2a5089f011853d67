"""What users of such commands ran into, as processes: pipes, encodings, replaced files, full disks, other machines."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_files
import models
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from clusir.cli.run import main
from clusir.runtimes.images.files import save_picture
from clusir.runtimes.images.picture import PictureInfo
from clusir.spec import ModelSpec
from tests import needs

COMMAND = [sys.executable, "-c", "from clusir.cli.run import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return str(models.save_identity(path, model_spec=models.spec(tile=256, halo=16)))


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    options = {"capture_output": True, "text": True, "timeout": 120, "stdin": subprocess.DEVNULL} | options
    if "stdout" in options or "input" in options:
        options.pop("capture_output" if "stdout" in options else "stdin")
    return subprocess.run([*COMMAND, *(str(a) for a in arguments)], **options)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (24, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hostile_files.photo(seed, size).save(path)
    return path


def flat(path: Path, value: int, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return path


def hold_while_writing(folder: Path, process: subprocess.Popen[Any]) -> None:
    """Halt a run when a half-written picture is there; ``SIGCONT`` lets it go on."""
    while process.poll() is None:
        if folder.is_dir() and any("partial" in name for name in os.listdir(folder)):
            process.send_signal(signal.SIGSTOP)
            return
        time.sleep(0.002)
    raise AssertionError("the run was over before a half-written picture was seen")


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")


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


def test_an_input_that_is_replaced_while_it_is_restored_is_done_again(model: str, tmp_path: Path) -> None:
    source, out = flat(tmp_path / "in" / "a.png", 40, (1000, 900)), tmp_path / "out"
    flat(tmp_path / "new.png", 200, (1000, 900))
    arguments = [*COMMAND, str(source.parent), "-o", str(out), "--model", model]
    first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    hold_while_writing(out, first)
    source.write_bytes((tmp_path / "new.png").read_bytes())
    first.send_signal(signal.SIGCONT)
    first.wait(120)
    second = run(source.parent, "-o", out, "--model", model)
    assert second.stdout.startswith("1 restored"), second
    with Image.open(out / "a.png") as image:
        assert image.getextrema() == ((200, 200),) * 3
    assert run(source.parent, "-o", out, "--model", model).stdout.startswith("0 restored, 1 skipped")


def scaling(path: Path, external: str, nested: bool) -> Path:
    """restored = image * w, with w in a file of its own; ``nested``: as the constant of an If's branch."""
    made = ModelSpec(name="scale", tile_px=64, halo_px=8)
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", external), ("offset", "0"), ("length", "4")):
        w.external_data.add(key=key, value=value)
    images = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, "h", "v"]) for n in ("image", "restored")]
    nodes, initializers = [helper.make_node("Mul", ["image", "w"], ["restored"])], [w]
    if nested:
        value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
        branches = {
            name: helper.make_graph([helper.make_node("Constant", [], ["out"], value=w)], name, [], [value])
            for name in ("then_branch", "else_branch")
        }
        nodes.insert(0, helper.make_node("If", ["yes"], ["w"], **branches))
        initializers = [helper.make_tensor("yes", TensorProto.BOOL, [], [True])]
    graph = helper.make_graph(nodes, "scale", images[:1], images[1:], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, text in made.to_metadata().items():
        proto.metadata_props.add(key=key, value=text)
    path.write_bytes(proto.SerializeToString())  # onnx.save would want to gather the weights
    return path


def test_new_weights_beside_a_model_are_noticed(tmp_path: Path) -> None:
    flat(tmp_path / "in" / "a.png", 200)
    onnx_file, weights = scaling(tmp_path / "m.onnx", "m.onnx.data", nested=False), tmp_path / "m.onnx.data"
    for factor, value in ((1.0, 200), (0.5, 100)):
        weights.write_bytes(struct.pack("<f", factor))
        done = run(tmp_path / "in", "-o", tmp_path / "out", "--model", onnx_file)
        assert done.stdout.startswith("1 restored"), done
        with Image.open(tmp_path / "out" / "a.png") as image:
            assert image.getpixel((5, 5)) == (value,) * 3
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--model", onnx_file).stdout.startswith("0 restored, 1 skipped")


def test_external_files_are_found_wherever_a_model_names_them(tmp_path: Path) -> None:
    from clusir.runtimes.runners.external import external_files

    for name in ("a.data", "sub/b.data", "c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(4))
    for external, nested, found in (
        ("a.data", False, ["a.data"]),
        ("sub/b.data", True, ["sub/b.data"]),
        ("gone.data", False, []),
        ("../../../../etc/passwd", True, []),
        ("/dev/zero", False, []),
        ("sub", False, []),
    ):
        path = scaling(tmp_path / "m.onnx", external, nested)
        assert [p.relative_to(tmp_path.resolve()).as_posix() for p in external_files(path)] == found, external
    data = path.read_bytes()
    for cut in range(0, len(data), 7):  # a file that ends anywhere, and one that is none
        path.write_bytes(data[:cut])
        assert external_files(path) == []
    (tmp_path / "c.xml").write_text("<net/>")
    assert external_files(tmp_path / "c.xml") == [tmp_path / "c.bin"]
    assert onnx.__version__


# Showing


def test_nobody_reads_any_more(model: str, tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / "in" / f"{i:02}.png", i)
    for options in (["--json"],):
        out = tmp_path / f"out{options[0]}"
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "in"), "-o", str(out), "--model", model, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(120) == 0
        assert errors == b""
        assert len(tree(out)) == 12
    failing = subprocess.run(  # nobody reads the errors
        f"{sys.executable} -c 'from clusir.cli.run import main; main()' {tmp_path / 'in'} -o {tmp_path / 'o2'} "
        f"--model {model} 2>&1 >/dev/full | true",
        shell=True,
        check=False,
    )
    assert failing.returncode == 0
    assert len(tree(tmp_path / "o2")) == 12


def test_a_log_that_cannot_be_written_is_named_and_the_work_is_done(model: str, tmp_path: Path) -> None:
    for i in range(5):
        photo(tmp_path / "in" / f"{i}.png", i)
    with open("/dev/full", "w") as full:
        done = run(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json", stdout=full, stderr=-1)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written (No space left on device); the pictures are done\n"
    assert len(tree(tmp_path / "out")) == 5


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_explaining_in_any_encoding(model: str, tmp_path: Path, encoding: str) -> None:
    for name in ("0.png", "ü.png", os.fsdecode(b"\xfc.png")):
        photo(tmp_path / "in" / name)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = run(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--explain", env=environment, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"level 1") == 3
    assert (b"####" in done.stdout) == (encoding != "utf-8")
    assert len(tree(tmp_path / "out")) == 3


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        needs.skip("mount", made.stderr.decode(errors="replace").strip())
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(model: str, tmp_path: Path, small_disk: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(80):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "in" / f"{i:02}.png")
    done = run(tmp_path / "in", "-o", small_disk / "out", "--model", model)
    assert done.returncode == 1
    assert "report it" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "make room" in done.stderr.splitlines()[-1]
    assert " not done in " in done.stdout
    kept = tree(small_disk / "out")
    assert 0 < len(kept) < 80
    for name in kept:
        with Image.open(small_disk / "out" / name) as image:
            image.load()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    done = run(tmp_path / "in", "-o", small_disk / "out", "--model", model)
    assert done.returncode == 0, done.stderr
    assert len(tree(small_disk / "out")) == 80


def test_two_machines_write_to_one_folder(model: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-p", "-f", "--mount-proc", "true"], capture_output=True).returncode:
        needs.skip("namespace")
    photo(tmp_path / "big" / "big.png", 0, (1000, 900))
    photo(tmp_path / "small" / "other.png")
    out = tmp_path / "out"
    first = subprocess.Popen([*COMMAND, str(tmp_path / "big"), "-o", str(out), "--model", model])
    hold_while_writing(out, first)
    other = ["unshare", "-p", "-f", "--mount-proc", *COMMAND, str(tmp_path / "small"), "-o", str(out), "--model", model]
    second = subprocess.run(other, capture_output=True, timeout=120)
    first.send_signal(signal.SIGCONT)
    assert (first.wait(120), second.returncode) == (0, 0), second.stderr
    assert tree(out) == ["big.png", "other.png"]
    assert run(tmp_path / "big", "-o", out, "--model", model).stdout.startswith("0 restored, 1 skipped")


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
