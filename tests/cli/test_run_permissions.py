"""clusir-run --fix and --strength: what reaches the model, what is refused, what is mentioned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clusir.cli.run import main
from tests.golden.make.standin import write_standin


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("told"), families={"noise": 0.0, "haze": 0.99, "low_light": 0.99})


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_fix_and_strength_reach_the_model(model: Path, photo: Path, tmp_path: Path) -> None:
    made = {}
    for name, options in {
        "auto": (), "noise": ("--fix", "noise"), "all": ("--fix", "all"), "none": ("--strength", "0"),
        "half": ("--fix", "all", "--strength", "0.5"), "own": ("--fix", "all", "--strength", "haze=0,low-light=0"),
    }.items():  # fmt: skip
        out = tmp_path / f"{name}.png"
        done = run(photo, "-o", out, "--model", model, "--backend", "ort", *options)
        assert done.exit_code == 0, done.output
        made[name] = pixels(out).astype(int)
    assert (made["none"] == pixels(photo)).all()
    assert (made["auto"] == made["noise"]).all()  # neither haze nor darkness is sure
    assert (made["own"] == made["noise"]).all()
    assert (made["all"] != made["noise"]).any()
    assert np.abs(made["half"] - (made["all"] + pixels(photo)) / 2).max() <= 1


def test_what_was_left_alone_is_said(model: Path, photo: Path, tmp_path: Path) -> None:
    done = run(photo, "-o", tmp_path / "a.png", "--model", model, "--backend", "ort", "--explain", "--json")
    line = json.loads(done.output.splitlines()[0])
    assert set(line["evidence"]) == {"noise", "haze", "low_light"}
    likely = [name for name in ("haze", "low_light") if line["evidence"][name] >= 0.5]
    assert len(line["hints"]) == len(likely)
    shown = run(photo, "-o", tmp_path / "b.png", "--model", model, "--backend", "ort", "--explain").output
    for hint in line["hints"]:
        assert hint in shown


def test_a_folder_restored_otherwise_is_not_taken_for_done(model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, restored in (
        ((), 1),
        ((), 0),
        (("--fix", "all"), 1),
        (("--fix", "all"), 0),
        (("--strength", "0.5"), 1),
    ):
        done = run(photo.parent, "-o", out, "--model", model, "--backend", "ort", "--json", *options)
        assert json.loads(done.output.splitlines()[-1])["summary"]["restored"] == restored, options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fix", "snow"), "snow"),
        (("--fix", "noise,auto"), "stand alone"),
        (("--strength", "2"), "0 to 1"),
        (("--strength", "haze=much"), "0 to 1"),
    ],
)
def test_nonsense_is_one_line(model: Path, photo: Path, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    done = run(photo, "-o", tmp_path / "a.png", "--model", model, "--backend", "ort", *options)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "a.png").exists()
