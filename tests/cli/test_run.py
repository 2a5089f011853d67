"""clusir-run as a process: exit codes, JSON, imports, kill -9, memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile_files
import models
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clusir.cli.run import main
from clusir.runtimes.batch.journal import JOURNAL_NAME

COMMAND = [sys.executable, "-c", "from clusir.cli.run import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.save_bundle(tmp_path_factory.mktemp("model")))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_folder(folder: Path, count: int, size: tuple[int, int] = (70, 90)) -> Path:
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        hostile_files.photo(i, size).save(folder / ("sub" if i % 2 else "") / f"p{i}.png")
    return folder


def test_a_wrong_request_says_what_to_do(tmp_path: Path) -> None:
    """Before a model is opened: the model named here is none."""
    good = write_folder(tmp_path / "in", 1) / "p0.png"
    (tmp_path / "empty").mkdir()
    for arguments, told in [
        ((), "error: no output given; say where to: clusir-run PICTURE -o FILE"),
        ((good,), f"error: no output given; say where to: clusir-run {good} -o FILE"),
        ((tmp_path / "godo.png", "-o", tmp_path / "out"), "godo.png: no such file or folder"),
        ((tmp_path / "in", "-o", tmp_path / "in"), "it is the input folder"),
        ((good, "-o", tmp_path / "o.png", "--report", tmp_path / "o.png"), "it is a page, not a picture or model"),
        ((good, "-o", tmp_path / "out.jgp"), "out.jgp: .jgp is not one of .png, .jpg, "),
        ((good, "-o", tmp_path / "out.gif"), "out.gif: .gif is not one of .png, .jpg, "),
        ((tmp_path / "empty", "-o", tmp_path / "out"), "empty: no pictures in there; names that end in .png"),
        ((good, "-o", tmp_path / "out.png", "--report", tmp_path), "it is a folder; name a file"),
        ((good, "-o", tmp_path / "out.png", "--max-memory", "lots"), "write it like 1500M or 2G"),
        ((good, "-o", tmp_path / "out", "--watch"), "p0.png: it is not a folder; name the folders"),
    ]:
        result = invoke(*arguments, "--model", tmp_path / "none.onnx")
        assert result.exit_code == 2, (arguments, result.output)
        assert told in result.stderr, result.output
        assert result.output.count("\n") == 1, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]
    assert [path.name for path in (tmp_path / "in").iterdir() if path.name.startswith(".")] == []
    alone = invoke()
    assert alone.exit_code == 2
    assert "Usage:" in alone.output
    assert "--fallback" in alone.output


def test_exit_codes(model: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 2)
    good, out = folder / "p0.png", tmp_path / "out"
    assert invoke(good, "-o", tmp_path / "x.png", "--model", model).exit_code == 0
    assert invoke(folder, "-o", out, "--model", model, "-q").exit_code == 0
    (folder / "bad.png").write_bytes(b"text")
    result = invoke(folder, "-o", out, "--model", model)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "bad.png" in result.stderr
    assert "0 restored, 2 skipped, 1 failed" in result.stdout
    assert "--no-resume does it again" in result.stdout
    assert "megapixels/s" not in result.stdout  # of nothing
    for arguments, code in [
        ((tmp_path / "missing.png", good, "-o", out), 2),
        ((good,), 2),
        (("-o", out), 2),
        ((tmp_path / "*.none", "-o", out), 2),
        ((good, "-o", out, "--backend", "tensorrt"), 2),
        ((good, folder / "bad.png", "-o", tmp_path / "one.png"), 2),
        ((folder, "-o", good), 2),
        ((good, "-o", out, "--max-memory", "lots"), 2),
        ((good, "-o", out, "--max-memory", "1M"), 2),
        ((good, "-o", out, "--format", "gif"), 2),
        ((good, "-o", out, "--precision", "int8"), 2),
    ]:
        result = invoke(*arguments, "--model", model)
        assert result.exit_code == code, (arguments, result.output)
        assert "Traceback" not in result.output
    assert invoke(good, "-o", out, "--model", tmp_path / "none.onnx").exit_code == 2
    assert invoke(good, "-o", out, "--model", folder / "bad.png").exit_code == 2


def test_a_device_that_is_not_there(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    hostile_files.photo().save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", model, "--device", "cuda")
    result = invoke(*arguments)
    assert result.exit_code == 3
    assert "clusir[gpu]" in result.stderr
    assert not (tmp_path / "b.png").exists()
    result = invoke(*arguments, "--fallback")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("warning:")
    assert "ort:cpu" in result.stdout


def test_what_precision_auto_chose_is_one_line(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusir.runtimes.machine.choice import Speeds

    speeds = Speeds({"fp32 on ort": 10.0, "fp32 on openvino": 12.0}, {})
    monkeypatch.setattr("clusir.runtimes.machine.choice.measure_apart", lambda request: speeds)
    hostile_files.photo().save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", model, "--precision", "auto")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("precision auto: fp32 on ort, 10.0 ms a tile (fp32 on openvino 12.0); no ")
    assert "on ort:cpu" in result.stdout
    result = invoke(*arguments, "--json")
    assert result.stderr == ""
    summary = json.loads(result.stdout.splitlines()[-1])["summary"]
    assert summary["chosen"].startswith("precision auto: fp32 on ort")
    assert summary["precision"] == "fp32"


def test_json_lines(model: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 3)
    (folder / "bad.png").write_bytes(b"")
    result = invoke(folder, "-o", tmp_path / "out", "--model", model, "--json", "--explain")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("status") for line in lines].count("restored") == 3
    failed = next(line for line in lines if line.get("status") == "failed")
    assert "empty" in failed["reason"]
    restored = next(line for line in lines if line.get("status") == "restored")
    assert (restored["width"], restored["height"], restored["bits"], restored["tiles"]) == (90, 70, 8, 4)
    assert set(restored["ms"]) == {"decode", "infer", "encode"}
    assert len(restored["gate"]) == sum(models.EXPERTS)
    summary = lines[-1]["summary"]
    assert (summary["restored"], summary["failed"]) == (3, 1)
    assert summary["placement"]["CPUExecutionProvider"] > 0
    assert result.stderr == ""


def test_compare_explain_and_report(model: str, tmp_path: Path) -> None:
    hostile_files.photo(0, (70, 90)).save(tmp_path / "a.png")
    report = tmp_path / "r.html"
    result = invoke(
        *(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", model),
        *("--compare", "--explain", "--report", report),
    )
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "b.compare.jpg") as image:
        assert image.width > 2 * 90
    assert "expert" in result.stdout
    assert "<html" in report.read_text().lower()


def test_formats_alpha_and_depth_through_the_command(model: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert invoke(tmp_path / "a.png", "-o", tmp_path / "o.tif", "--model", model).exit_code == 0
    with Image.open(tmp_path / "o.tif") as image:
        np.testing.assert_array_equal(np.asarray(image)[:, :, 3], pixels[:, :, 3])
    assert invoke(tmp_path / "a.png", "-o", tmp_path / "o.jpg", "--model", model).exit_code == 1
    assert invoke(tmp_path / "a.png", "-o", tmp_path / "o.jpg", "--model", model, "--alpha", "drop").exit_code == 0
    assert invoke(tmp_path / "a.png", "-o", tmp_path / "out", "--model", model, "--format", "webp").exit_code == 0
    assert (tmp_path / "out" / "a.webp").is_file()


def test_names_that_are_no_text_or_terminal_commands(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"[red]\x1b[2J.png", b"n" * 250 + b".png"):
        path = os.fsencode(folder) + b"/" + name
        hostile_files.photo().save(tmp_path / "p.png")
        os.rename(tmp_path / "p.png", path)
    (folder / "\x1b]0;bad\x07.png").write_bytes(b"text")
    for options in (["--explain"], ["--json"]):
        result = invoke(folder, "-o", tmp_path / "out", "--model", model, "--no-resume", *options)
        assert result.exit_code == 1, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "\x1b" not in result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert invoke(folder, "-o", tmp_path / "out", "--model", model).stdout.startswith("0 restored, 3 skipped, 1 failed")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['clusir-run', '--help']\n"
        "from clusir.cli.run import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'PIL', 'rich')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--fallback" in done.stdout


def test_restoring_imports_no_torch(model: str, tmp_path: Path) -> None:
    hostile_files.photo().save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'openvino', 'safetensors', 'skimage', 'scipy'): sys.modules[name] = None\n"
        f"sys.argv = ['clusir-run', {str(tmp_path / 'a.png')!r}, '-o', {str(tmp_path / 'b.png')!r}]\n"
        f"sys.argv += ['--model', {model!r}]\n"
        "from clusir.cli.run import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.png").is_file()


def pictures(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_kill_minus_nine_loses_nothing(model: str, tmp_path: Path) -> None:
    """``CLUSIR_KILLS=20`` runs the full count."""
    folder = write_folder(tmp_path / "in", 60, (150, 200))
    arguments = [*COMMAND, str(folder), "--model", model, "--json", "--threads", "1", "-o"]
    assert subprocess.run([*arguments, str(tmp_path / "whole")], stdout=subprocess.DEVNULL, check=False).returncode == 0
    whole = pictures(tmp_path / "whole")
    assert len(whole) == 60
    rng, out, kills, resumed = random.Random(7), tmp_path / "out", 0, 0
    while kills < int(os.environ.get("CLUSIR_KILLS", "3")):
        process = subprocess.Popen([*arguments, str(out)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(rng.randint(1, 12)):  # wait for a random picture, then a random moment within the next ones
            line = process.stdout.readline()
            resumed += b'"skipped"' in line
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        ended = process.wait()
        process.stdout.close()
        kills += ended == -signal.SIGKILL
        for name, data in pictures(out).items():
            assert data == whole[name], f"{name} is half written"
    assert subprocess.run([*arguments, str(out)], stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert pictures(out) == whole
    assert resumed > 0
    assert [p.name for p in out.rglob("*") if p.name.startswith(".") and p.name != JOURNAL_NAME] == []


def test_terminated_run_ends_with_130(model: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 60, (150, 200))
    arguments = [*COMMAND, str(folder), "--model", model, "--json", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert 0 < len(pictures(tmp_path / "out")) < 60


def peak_rss(arguments: list[str]) -> int:
    """Peak resident bytes of a child, as the operating system counted them."""
    code = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    returned, peak = map(int, done.stdout.split())
    assert returned == 0, done.stderr
    return peak * 1024


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """14 and 69 megabytes decoded: from PNG to PNG only bands of either are held."""
    bundle = str(models.save_identity(tmp_path / "m.onnx", model_spec=models.spec(tile=256, halo=16)))
    peaks = []
    for height in (2200, 11000):
        path = tmp_path / f"{height}.png"
        Image.fromarray(np.zeros((height, 2100), np.uint8)).convert("RGB").save(path, compress_level=1)
        arguments = [*COMMAND, str(path), "-o", str(tmp_path / "o.png"), "--model", bundle, "--max-memory", "500M"]
        peaks.append(peak_rss(arguments))
    assert max(peaks) < 500 << 20
    assert peaks[1] - peaks[0] < 40 << 20
