"""Other machines, full disks, closed pipes, replaced files, encodings: what is done stays done."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clusir.spec import ModelSpec
from tests import needs
from tests.cli.situations import COMMAND, flat, hold_while_writing, photo, run, tree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return str(models.save_identity(path, model_spec=models.spec(tile=256, halo=16)))


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
