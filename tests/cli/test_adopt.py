"""``clusir-export --from``: what it prints, and which options it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from clusir.cli.export import main
from clusir.cli.run import main as run


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A box filter of 3x3 on pictures in 0..255."""
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[range(3), range(3)] = 1 / 9
    picture = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3, None, None]) for n in ("in", "out")]
    limit = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0), ("white", 255))]
    nodes = [
        helper.make_node("Conv", ["in", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "zero", "white"], ["out"]),
    ]
    constants = [numpy_helper.from_array(kernel, "k"), *limit]
    graph = helper.make_graph(nodes, "box", picture[:1], picture[1:], constants)
    path = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), str(path))
    return path


def test_adopt_then_restore(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.onnx"
    picture = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 300, 3), np.uint8)).save(picture)
    told = CliRunner().invoke(run, [str(picture), "-o", str(tmp_path / "q.png"), "--model", str(theirs)])
    assert told.exit_code == 2
    assert "clusir-export --onnx NEW.onnx --from THIS.onnx" in " ".join(told.output.split())
    done = CliRunner().invoke(main, ["--onnx", str(out), "--from", str(theirs), "--range", "0..255"])
    assert done.exit_code == 0, done.output
    assert "ort: 15 comparisons" in done.output
    assert "openvino: 15 comparisons" in done.output
    done = CliRunner().invoke(run, [str(picture), "-o", str(tmp_path / "q.png"), "--model", str(out)])
    assert done.exit_code == 0, done.output
    before, after = (np.asarray(Image.open(p)).astype(float) for p in (picture, tmp_path / "q.png"))
    windows = np.lib.stride_tricks.sliding_window_view(before, (3, 3), axis=(0, 1)).mean(axis=(3, 4))
    np.testing.assert_allclose(after[1:-1, 1:-1], windows, atol=0.51)


def test_json(theirs: Path, tmp_path: Path) -> None:
    options = ["--onnx", str(tmp_path / "o.onnx"), "--from", str(theirs), "--range", "0..255", "--backends", "ort"]
    done = CliRunner().invoke(main, [*options, "--json", "--tile", "128", "--halo", "8", "--debug"])
    told = json.loads(done.stdout)
    assert (told["tile_px"], told["halo_px"], told["scale"], told["reach"]["whole_picture"]) == (128, 8, 1, False)
    assert {row["backend"] for row in told["agreements"]} == {"ort"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--from", "T", "--calibration", "photos"], "--calibration does nothing without --precision fp16 or int8"),
        (["--from", "T", "--max-drop", "1dB", "--precision", "fp16"], "--max-drop does nothing without --precision"),
        (["--from", "T", "--openvino"], "--openvino does nothing with --from"),
        (["--from", "T", "--module", "a:b"], "--module does nothing with --from"),
        (["--bgr"], "--bgr describes a file for --from"),
        (["--set", "sigma=1"], "--set describes a file for --from"),
        (["--from", "T", "--range", "255"], "is no range"),
        (["--from", "T", "--set", "sigma=3"], "no such input"),
        (["--from", "T", "--set", "sigma"], "is no setting"),
        (["--from", "T", "--mean", "a"], "is no number"),
        (["--from", "absent.onnx"], "no such file"),
    ],
)
def test_options_act_or_are_refused(theirs: Path, tmp_path: Path, options: list[str], why: str) -> None:
    told = [str(theirs) if option == "T" else option for option in options]
    done = CliRunner().invoke(main, ["--onnx", str(tmp_path / "o.onnx"), *told])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())
    assert not (tmp_path / "o.onnx").exists()


def test_the_file_itself_is_not_overwritten(theirs: Path) -> None:
    before = theirs.read_bytes()
    done = CliRunner().invoke(main, ["--onnx", str(theirs), "--from", str(theirs)])
    assert done.exit_code == 2
    assert theirs.read_bytes() == before


def test_a_noise_level_is_set_by_the_command(tmp_path: Path) -> None:
    """Refused with what there is, and another picture for another number."""
    shape = [None, 3, None, None]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
             helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1])]  # fmt: skip
    graph = helper.make_graph([helper.make_node("Mul", ["x", "sigma"], ["y"])], "theirs", ports,
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "t.onnx")
    ours = tmp_path / "ours.onnx"
    done = CliRunner().invoke(main, ["--onnx", str(ours), "--from", str(tmp_path / "t.onnx"), "--set", "sigma=0.5"])
    assert done.exit_code == 0, done.output
    assert "takes sigma=0.5 where nobody sets it" in done.output
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(tmp_path / "in.png")

    def restored(*options: str) -> Result:
        named = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out"), "--model", str(ours), "--backend", "ort"]
        return CliRunner().invoke(run, [*named, *options])

    for options, level in ((), 100), (("--set", "sigma=0.25"), 50), (("--set", "sigma=1"), 200):
        assert restored(*options).exit_code == 0
        assert np.asarray(Image.open(tmp_path / "out" / "in.png")).mean() == level  # the journal tells them apart
    done = restored("--set", "noise=1")
    assert (done.exit_code, "has no such input; it has sigma" in done.output) == (2, True)
    done = restored("--set", "sigma")
    assert (done.exit_code, "write for example sigma=15" in done.output) == (2, True)
