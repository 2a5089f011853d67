"""The training loop: bit-exact resumption, budgets, state files that lie, the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from clusir.errors import BackendError, ModelFormatError, UsageError
from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.network.router import ClusterRouter
from clusir.training import losses
from clusir.training.data import BatchPlan, PhotoSet, draw_batch
from clusir.training.judge import evidence
from clusir.training.loop import Stage, TrainConfig, _Run, learning_rate, resumed_config, train
from clusir.training.losses import log_error
from clusir.training.monitor import RouterMonitor, validate
from clusir.training.precision import ARITHMETICS, half_convolutions
from clusir.training.state import read_header
from tests import needs

# Two stages, a calibration in the middle, and batches of a quad: everything that a resumed run must not forget.
SMALL = TrainConfig(
    steps=6,
    stages=(Stage(0.0, 4, 32, 1), Stage(0.6, 4, 48, 1)),
    warmup_steps=2,
    calibrate_at=(0, 4),
    calibration_batches=2,
    half_until=0.0,
    arithmetic="float32",
    deblur_batches=0,
    validate_every_s=1e9,
    validation_photos=1,
    validation_crop_px=32,
)


LOOP = "clusir.training.loop"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(SMALL, folder, whole)
    steps = []
    train(SMALL, folder, parts, observe=lambda p: steps.append(p.step), stop=lambda: len(steps) >= 3)
    assert steps == [1, 2, 3]
    torch.manual_seed(12345)  # what happens between the parts must not matter
    train(SMALL, folder, parts, resume=True, observe=lambda p: steps.append(p.step))
    assert steps == [1, 2, 3, 4, 5, 6]
    first, second = tensors(whole / "state.safetensors"), tensors(parts / "state.safetensors")
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []
    assert any(name.startswith("first.") for name in first)


def test_the_result_is_a_checkpoint_with_its_training_in_it(folder: Path, tmp_path: Path) -> None:
    path = train(replace(SMALL, steps=2), folder, tmp_path / "run")
    model = checkpoint.load(path)
    assert model.config == CONFIGS["tiny"]
    note = json.loads(checkpoint.read_metadata(path)["training"])
    assert note["step"] == 2
    assert note["config"]["seed"] == 0
    with (tmp_path / "run" / "log.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert {"psnr/noise 25", "gain/haze", "gain"} <= names
    assert "noise 25" in (tmp_path / "run" / "curve.svg").read_text()
    labels = checkpoint.cluster_labels(str(path))
    assert tuple(len(level) for level in labels) == model.config.clusters
    assert json.loads((path.parent / "clusters.json").read_text())["levels"][0]["labels"] == list(labels[0])


def test_training_gets_below_the_error_of_the_degradation_itself(folder: Path, tmp_path: Path) -> None:
    weights = {"noise": 1.0, "jpeg": 0.01}
    config = replace(
        SMALL, steps=30, stages=(Stage(0.0, 8, 32, 1),), weights=weights, warmup_steps=5, learning_rate=3e-3,
        calibrate_at=(0,), validation_crop_px=32, bend_until=0.0,
    )  # fmt: skip
    values: list[float] = []
    train(config, folder, tmp_path / "run", observe=lambda p: values.append(p.losses["loss/error"]))
    photos = PhotoSet(folder, "train")
    batches = [draw_batch(photos, BatchPlan(8, 32, 1), (config.seed, step, 0), weights) for step in range(30)]
    untouched = [float(log_error(b.degraded, b.clean)) for b in batches]
    assert values[0] == pytest.approx(untouched[0], rel=1e-4)  # an untrained network returns its input
    assert sum(values[-15:]) < sum(untouched[-15:]) - 15 * 0.1  # 0.9 dB


def test_the_error_bends_to_its_logarithm_over_its_share_of_the_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    powers: list[float] = []

    def spy(restored: torch.Tensor, clean: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        powers.append(power)
        return log_error(restored, clean, power)

    monkeypatch.setattr(losses, "log_error", spy)
    config = replace(SMALL, steps=4, bend_until=0.5, calibrate_at=(), stages=(Stage(0.0, 4, 32, 1),))
    train(config, folder, tmp_path / "run")
    assert powers == [0.0, 0.5, 1.0, 1.0]


def test_router_noise_ends_at_its_share_of_the_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = ClusterRouter.forward

    def spy(self: ClusterRouter, *arguments: object):
        seen.append(self.training)
        return forward(self, *arguments)

    monkeypatch.setattr(ClusterRouter, "forward", spy)
    config = replace(SMALL, steps=4, router_noise_until=0.5, calibrate_at=(), stages=(Stage(0.0, 4, 32, 1),))
    steps: list[int] = []
    train(config, folder, tmp_path / "run", observe=lambda p: steps.append(len(seen)), stop=lambda: len(steps) >= 3)
    assert seen == [True] * 6 + [False] * 3


def test_a_time_budget_ends_the_run(folder: Path, tmp_path: Path) -> None:
    seconds: list[float] = []
    config = replace(SMALL, steps=0, seconds=0.4)
    train(config, folder, tmp_path / "run", observe=lambda p: seconds.append(p.seconds))
    assert seconds[-1] >= 0.4
    assert all(passed < 0.4 for passed in seconds[:-1])


def test_a_second_run_in_one_folder_is_refused_and_a_missing_state_too(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no training state"):
        train(SMALL, folder, tmp_path / "none", resume=True)
    train(SMALL, folder, tmp_path / "run", stop=lambda: True)
    with pytest.raises(UsageError, match="--resume"):
        train(SMALL, folder, tmp_path / "run")


def test_a_damaged_state_is_named(folder: Path, tmp_path: Path) -> None:
    train(SMALL, folder, tmp_path / "run", stop=lambda: True)
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ModelFormatError, match="not a training state"):
        train(SMALL, folder, tmp_path / "run", resume=True)
    checkpoint.save(ClusIR(CONFIGS["tiny"]), state)
    with pytest.raises(ModelFormatError, match="not a training state"):
        train(SMALL, folder, tmp_path / "run", resume=True)


def test_a_device_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        needs.skip("no cuda")
    with pytest.raises(BackendError, match="cuda"):
        train(SMALL, folder, tmp_path / "run", device="cuda")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "exactly one of"),
        ({"steps": 5, "seconds": 5.0}, "exactly one of"),
        ({"steps": 5, "model": "huge"}, "huge"),
        ({"steps": 5, "stages": [[0.0, 4, 30, 1]]}, "multiple of 16"),
        ({"steps": 5, "stages": [[0.0, 3, 32, 1]]}, "4 x quads"),
        ({"steps": 5, "stages": [[0.5, 4, 32, 1]]}, "begin at 0"),
        ({"steps": 5, "stages": [[0.0, 4]]}, "training config"),
        ({"steps": 5, "bend_until": 1.5}, "bend_until 1.5"),
        ({"steps": 5, "counts": [0.5, 0.4]}, "sum to 1"),
        ({"steps": 5, "severities": {"motion_blur": [0.5, 1.5]}}, "motion_blur from 0.5 to 1.5"),
        ({"steps": 5, "severities": {"snow": [0, 1]}}, "snow"),
        ({"steps": 5, "arithmetic": "float8"}, "float8"),
        ({"steps": 5, "momentum": 0.9}, "unknown field 'momentum'"),
        ({"steps": 5, "weights": {"nosie": 1.0}}, "nosie"),
        ({"steps": 5, "weights": {"noise": -1.0}}, "noise -1"),
        ({"steps": 5, "weights": {"noise": float("nan")}}, "noise nan"),
        ({"steps": 5, "weights": {}}, "nothing to train on"),
        ({"steps": 5, "learning_rate": -1.0}, "learning_rate"),
        ({"steps": 5, "learning_rate": float("nan")}, "learning_rate"),
        ({"steps": 5, "clip_norm": 0.0}, "clip_norm"),
        ({"steps": 5, "ema_decay": 2.0}, "ema_decay"),
        ({"steps": 5, "half_until": 9.0}, "half_until"),
        ({"steps": 5, "restricted": -0.1}, "restricted"),
        ({"steps": 5, "warmup_steps": -5}, "warmup_steps"),
        ({"steps": 5, "calibrate_at": [-3]}, "calibrate_at"),
        ({"steps": 5, "validation_crop_px": 100}, "validation_crop_px 100"),
        ({"steps": 5, "validation_photos": 0}, "validation_photos"),
        ({"steps": 5, "model": "small", "permissions": True}, "permissions"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TrainConfig.from_dict(values)


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.01)
    rates = [learning_rate(config, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[8:12])
    assert rates[-1] == pytest.approx(0.01)
    assert learning_rate(config, 200, 1.7) == pytest.approx(0.01)


def test_a_resumed_run_computes_as_it_began(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = replace(SMALL, steps=4, half_until=0.75, arithmetic="auto"), tmp_path / "run"
    asked, halves, steps = [], [], []
    monkeypatch.setattr(f"{LOOP}.choose_arithmetic", lambda *a, **k: asked.append(k) or ARITHMETICS[3])
    real = half_convolutions
    monkeypatch.setattr(f"{LOOP}.half_convolutions", lambda model: halves.append(len(steps)) or real(model))
    train(config, folder, out, observe=lambda p: steps.append(p.step), stop=lambda: len(steps) >= 2)
    train(config, folder, out, observe=lambda p: steps.append(p.step), resume=True)
    assert asked == [{"half": True}]
    assert read_header(out / "state.safetensors")["arithmetic"] == "bfloat16 channels_last"
    assert halves == [0, 1, 2]  # of four steps: three quarters of the budget


def test_a_run_fits_its_deblurring_once_and_only_where_the_weights_it_starts_from_have_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, fitted = replace(SMALL, steps=2, deblur_batches=2), []
    monkeypatch.setattr(f"{LOOP}.calibrate_deblur", lambda model, batches, seed: fitted.append(list(batches)))
    first = train(config, folder, tmp_path / "first", stop=lambda: True)
    train(config, folder, tmp_path / "first", resume=True, stop=lambda: True)
    assert len(fitted) == 1
    assert [batch.degraded.shape for batch in fitted[0]] == [(16, 3, 96, 96)] * 2
    same = [torch.equal(d, c) for batch in fitted[0] for d, c in zip(batch.degraded, batch.clean, strict=True)]
    assert any(same)  # what is not blurred has nothing to aim at
    train(config, folder, tmp_path / "second", start=first, stop=lambda: True)
    assert len(fitted) == 1
    bare = ClusIR(replace(CONFIGS["tiny"], deblur=False))
    checkpoint.save(bare, tmp_path / "bare.safetensors", {})
    train(config, folder, tmp_path / "third", start=tmp_path / "bare.safetensors", stop=lambda: True)
    assert len(fitted) == 2


def test_validation_reports_no_gain_for_a_network_that_returns_its_input(folder: Path) -> None:
    torch.manual_seed(0)
    figures = validate(ClusIR(CONFIGS["tiny"]).eval(), PhotoSet(folder, "validation"), 64, 1)
    assert figures["gain"] == pytest.approx(0, abs=1e-4)
    assert figures["psnr/clean"] == pytest.approx(60)


def test_a_run_starts_from_a_checkpoint_of_a_smaller_configuration(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = ClusIR(replace(CONFIGS["tiny"], tone=False, decoder_gains=False, damage_cue=0, deblur=False))
    checkpoint.save(given, tmp_path / "given.safetensors", {})
    config = replace(SMALL, steps=1, learning_rate=1e-9, final_learning_rate=1e-9, weight_decay=0.0)
    result = checkpoint.load(train(config, folder, tmp_path / "run", start=tmp_path / "given.safetensors"))
    assert result.config.tone
    torch.testing.assert_close(result.stem.weight, given.stem.weight)


def test_a_run_from_given_weights_keeps_their_routers_after_a_stop_too(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    checkpoint.save(ClusIR(CONFIGS["tiny"]), tmp_path / "given.safetensors", {})
    seen: list[int] = []
    config = replace(SMALL, steps=3, calibrate_at=(0, 2))
    start = tmp_path / "given.safetensors"
    train(config, folder, tmp_path / "run", start=start, observe=lambda p: seen.append(p.step), stop=lambda: bool(seen))
    assert seen == [1]
    assert resumed_config(tmp_path / "run").calibrate_at == ()
    with pytest.raises(UsageError, match="has its own weights"):
        train(config, folder, tmp_path / "run", start=start, resume=True)


def test_a_checkpoint_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint.save(ClusIR(replace(CONFIGS["tiny"], widths=(16, 32, 48))), tmp_path / "other.safetensors", {})
    with pytest.raises(UsageError, match=r"does not fit.*stem.weight"):
        train(replace(SMALL, steps=1), folder, tmp_path / "run", start=tmp_path / "other.safetensors")


PERMITTED = replace(SMALL, permissions=True, restricted=1.0, as_taken=0.5, drawn_pictures=2, evidence_crops=20, steps=2)


def test_a_network_with_permissions_trains_and_its_obedience_is_validated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for judge in ("evidence", "exposure", "trust", "pilot"):  # how well they fit, their own tests say
        monkeypatch.setattr(f"clusir.training.judge.{judge}._STEPS", 10)
        calibrate = getattr(evidence, f"calibrate_{judge}")
        monkeypatch.setattr(evidence, f"calibrate_{judge}", partial(calibrate, crop_px=64))
    seen = []
    path = train(PERMITTED, folder, tmp_path / "run", observe=lambda p: seen.append(p))
    trained = checkpoint.load(path)
    assert trained.config.permissions
    assert trained.evidence is not None
    assert ((trained.evidence.thresholds[:4] >= 0.1) & (trained.evidence.thresholds[:4] <= 1.0)).all()
    assert (trained.evidence.thresholds[4:] >= 0.9).all()
    floors, thresholds = trained.evidence.floors, trained.evidence.thresholds
    assert torch.equal(floors[:4], thresholds[:4])
    assert ((floors[4:] >= 0.05) & (floors[4:] <= thresholds[4:])).all()
    assert set(json.loads((tmp_path / "run" / "evidence.json").read_text())) > {"thresholds", "floors", "curves"}
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert checkpoint.sha256(path) in card
    assert "random weights" in card
    assert "holds no MANIFEST.tsv" in card
    assert "| haze |" in card
    assert not any(p.losses["skipped"] for p in seen)
    figures = seen[-1].validation
    assert figures is not None
    assert {"psnr/camera ISO 6400", "shift/noise only, of low light", "psnr/nothing, of noise 25"} <= set(figures)


def test_the_averaged_weights_take_a_calibration_and_stale_moments_go(folder: Path, tmp_path: Path) -> None:
    run = _Run(replace(SMALL, steps=5), folder, tmp_path, "cpu", False, None, lambda text: None)
    monitor = RouterMonitor()
    for step in range(2):
        run.advance(draw_batch(run.photos, run.plan(0.1), (0, step, 0)), 0.1, monitor)
    project = run.routers[0].project.weight
    assert run.optimizer.state[project]
    run.calibrate()
    mine, theirs = dict(run.model.named_parameters()), dict(run.average.model.named_parameters())
    for name, tensor in mine.items():
        calibrated = name.endswith(("router.project.weight", "router.project.bias", "router.see.weight"))
        assert torch.equal(tensor, theirs[name]) or not calibrated, name
    assert not run.optimizer.state.get(project)
    assert run.optimizer.state[mine["stem.weight"]]


def test_ranks_draw_noise_of_their_own_and_start_from_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rank in (0, 1):
        monkeypatch.setattr("clusir.training.loop.dist.is_initialized", lambda: True)
        monkeypatch.setattr("clusir.training.loop.dist.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", lambda module, **options: module)
        run = _Run(replace(SMALL, steps=5), folder, tmp_path, "cpu", False, None, lambda text: None)
        found.append((run.model.stem.weight.detach().clone(), torch.rand(4)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])
