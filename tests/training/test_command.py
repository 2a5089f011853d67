"""The training command: budgets, signals, several processes, refusals in one line, recipes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from clusir.atomic import PARTIAL
from clusir.cli.train import main, make_config, read_config, read_recipe, recipes
from clusir.errors import UsageError
from clusir.network import checkpoint
from clusir.network.model import CONFIGS


def test_the_command_trains_and_resumes_with_a_longer_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusir.training.deblur._STEPS", 10)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"stages": [[0.0, 4, 32, 1]], "calibrate_at": [], "deblur_batches": 1, "validation_photos": 1})
    )
    base = ["--data", str(folder), "--out", str(tmp_path / "run"), "--threads", "1"]
    first = CliRunner().invoke(main, [*base, "--config", str(config), "--steps", "1"])
    assert first.exit_code == 0, first.output
    assert "ema.safetensors" in first.output
    assert "fitting the deblurring blend" in first.stderr
    second = CliRunner().invoke(main, [*base, "--resume", "--steps", "2"])
    assert second.exit_code == 0, second.output
    assert "fitting" not in second.stderr
    note = json.loads(checkpoint.read_metadata(tmp_path / "run" / "ema.safetensors")["training"])
    assert (note["step"], note["config"]["stages"][0]["crop_px"]) == (2, 32)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--steps", "1", "--device", "cuda:99"], 3, "cuda:99"),
        (["--steps", "1", "--time-budget", "soon"], 2, "soon"),
        (["--steps", "1", "--threads", "0"], 2, "--threads 0"),
        (["--steps", "1", "--workers", "-1"], 2, "--workers -1"),
        (["--steps", "1", "--config", "missing.toml"], 2, "missing.toml"),
        ([], 2, "exactly one of"),
        (["--resume"], 2, "no training state"),
        (["--resume", "--start-from", "x.safetensors"], 2, "give one"),
    ],
)
def test_the_command_refuses_in_one_line(
    folder: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    result = CliRunner().invoke(main, ["--data", str(folder), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == code
    assert says in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_a_signal_saves_the_run_and_exits_130(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"stages": [[0.0, 4, 32, 1]], "calibrate_at": [], "deblur_batches": 0, "save_every_s": 0})
    )
    options = ["--data", str(folder), "--out", str(out), "--threads", "1", "--config", str(config), "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "clusir.cli.train", *options], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not list(out.glob(f".*{PARTIAL}"))
    assert checkpoint.load(out / "ema.safetensors").config == CONFIGS["tiny"]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_one_model(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "config.json"
    values = {"stages": [[0.0, 4, 32, 1]], "calibrate_at": [0], "calibration_batches": 1, "deblur_batches": 0}
    values |= {"validation_photos": 1, "validation_crop_px": 32}
    config.write_text(json.dumps(values))
    options = ["--data", str(folder), "--out", str(tmp_path / "run"), "--threads", "1"]
    options += ["--config", str(config), "--steps", "2"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = {**os.environ, **shared, "RANK": "1", "LOCAL_RANK": "1"}
    command = [sys.executable, "-m", "clusir.cli.train", *options]
    with subprocess.Popen(command, env=other, stderr=subprocess.PIPE, text=True) as process:
        first = CliRunner().invoke(main, options, env={**shared, "RANK": "0", "LOCAL_RANK": "0"})
        try:
            _, errors = process.communicate(timeout=200)
        finally:
            process.kill()  # it waits for a first process that has ended
    assert first.exit_code == 0, first.output
    assert process.returncode == 0, errors
    assert not torch.distributed.is_initialized()
    assert json.loads(checkpoint.read_metadata(tmp_path / "run" / "ema.safetensors")["training"])["step"] == 2


def test_given_weights_change_the_defaults_and_a_file_still_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("bend_until = 0.25\n")
    config = make_config(tmp_path, False, read_config(file), {"steps": 5}, start=True)
    assert (config.bend_until, config.router_noise_until, config.calibrate_at) == (0.25, 0.0, ())
    assert make_config(tmp_path, False, {}, {"steps": 5}).calibrate_at != ()


def test_the_recipes_of_the_package_are_configurations_and_options_go_over_them(tmp_path: Path) -> None:
    assert "tiny" in recipes()
    for name in recipes():
        config = make_config(tmp_path, False, read_recipe(name), {"steps": 7})
        assert (config.steps, config.seconds) == (7, 0.0)
    assert make_config(tmp_path, False, read_recipe("tiny"), {}).permissions
    with pytest.raises(UsageError, match="no recipe named 'huge'; there are tiny"):
        read_recipe("huge")
