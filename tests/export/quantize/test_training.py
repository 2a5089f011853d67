"""Quantisation-aware training rounds what the exporter rounds, as it rounds it, and leaves the float network whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from clusir.cli.train import main, make_config
from clusir.errors import UsageError
from clusir.export.quantize.steps import QuantizeConfig, Quantizer
from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.training.loop import Stage, TrainConfig, train
from clusir.training.quantised import (
    Ranges,
    RoundedTwin,
    fake_quantised,
    integer_convolutions,
    prepare,
    round_weight,
)

SMALL = TrainConfig(
    steps=4, stages=(Stage(0.0, 4, 32, 1),), warmup_steps=2, learning_rate=1e-4, half_until=0.0, qat=True,
    arithmetic="float32", deblur_batches=0, qat_batches=1, validate_every_s=1e9, validation_photos=1,
    validation_crop_px=32,
)  # fmt: skip


@pytest.fixture
def model() -> ClusIR:
    """``tiny`` with every parameter off its start: zero-initialised layers hide errors."""
    torch.manual_seed(0)
    made = ClusIR(CONFIGS["tiny"]).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return made


@pytest.fixture
def images() -> list[torch.Tensor]:
    return [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_weights_are_rounded_to_the_exporters_integers(routed: Any) -> None:
    config = QuantizeConfig().without("Compact", "Equalise", "ScaleInputs", "RoundLeastSquares")
    quantizer = Quantizer(routed.whole, routed.calibration(), config)
    tensors = {t.name: numpy_helper.to_array(t) for t in quantizer.build().graph.initializer}
    name = "encoder.0.block.expand.weight"
    rounded = tensors[f"{name}_quantized"] * tensors[f"{name}_scale"].reshape(-1, 1, 1, 1)
    original = next(t for t in onnx.load(routed.whole).graph.initializer if t.name == name)
    mine = round_weight(torch.from_numpy(numpy_helper.to_array(original).copy())).numpy()
    assert np.abs(mine - rounded).max() < 1e-6
    assert np.abs(mine - numpy_helper.to_array(original)).max() > 1e-4


def test_preparing_changes_no_result(model: ClusIR, images: list[torch.Tensor]) -> None:
    with torch.no_grad():
        before = model(images[0]).restored
        weight = model.refine[0].feed_forward.expand.weight.clone()  # type: ignore[union-attr, operator]
        ranges = prepare(model, images)
        after = model(images[0]).restored
    assert (before - after).abs().max() < 1e-4
    assert not torch.equal(weight, model.refine[0].feed_forward.expand.weight)  # type: ignore[union-attr, arg-type]
    names = integer_convolutions(model).keys()
    assert ranges.input.keys() == ranges.output.keys() == names
    assert all(low <= 0 <= high for low, high in (*ranges.input.values(), *ranges.output.values()))
    expanding = [name for name in names if name.endswith("expand")]
    assert all(ranges.output[name][0] == 0 for name in expanding), "a ReLU follows"
    assert Ranges.from_json(json.loads(json.dumps(ranges.to_json()))) == ranges
    assert ranges.output_scale.keys() == {name for name in names if not name.endswith("expand")}
    assert ranges.input_scale
    assert not any("encoder" in name for name in ranges.input_scale if name.endswith("project")), "behind a ReLU"
    assert all(len(set(scale)) > 4 for scale in (*ranges.output_scale.values(), *ranges.input_scale.values()))
    up = np.reshape(ranges.output_scale["up.0.body"], (-1, 4))
    assert np.array_equal(up, up[:, :1].repeat(4, axis=1)), "four channels here are one of the transposed convolution"


def test_rounding_is_felt_inside_the_context_only(model: ClusIR, images: list[torch.Tensor]) -> None:
    ranges = prepare(model, images)
    with torch.no_grad():
        plain = model(images[0])
        routing = tuple(zip(plain.posteriors, plain.gates, strict=True))
        with fake_quantised(model, ranges):
            rounded = model(images[0], routing).restored
        again = model(images[0]).restored
    assert torch.equal(plain.restored, again)
    error = (rounded - plain.restored).abs().max()
    assert 1e-5 < error < 0.3
    assert model.state_dict().keys() == ClusIR(CONFIGS["tiny"]).state_dict().keys()


def test_both_passes_reach_the_weights(model: ClusIR, images: list[torch.Tensor]) -> None:
    twin = RoundedTwin(model, prepare(model, images))
    out = twin(images[0])
    assert out.restored.shape == (4, 3, 32, 32)
    assert out.gates[0].shape[0] == 2
    weight = model.refine[0].feed_forward.expand.weight  # type: ignore[union-attr]
    gradients = []
    for half in (out.restored[:2], out.restored[2:]):
        (gradient,) = torch.autograd.grad(half.square().sum(), [weight], retain_graph=True)  # type: ignore[list-item]
        gradients.append(gradient)
    assert min(g.abs().max() for g in gradients) > 0
    assert not torch.equal(*gradients)


def test_a_stopped_run_goes_on_with_its_ranges_to_the_same_bits(
    model: ClusIR, tmp_path: Path, write_photos: Any
) -> None:
    photos = write_photos(tmp_path / "photos", 30, size=64)
    start = tmp_path / "start.safetensors"
    checkpoint.save(model, start, {})
    first = train(SMALL, photos, tmp_path / "whole", start=start)
    steps: list[int] = []
    parts = tmp_path / "parts"
    train(SMALL, photos, parts, start=start, observe=lambda p: steps.append(p.step), stop=lambda: len(steps) >= 2)
    second = train(SMALL, photos, parts, resume=True)
    a, b = checkpoint.load(first).state_dict(), checkpoint.load(second).state_dict()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert not torch.equal(a["head.weight"], model.head.weight)
    routers = {name: tensor for name, tensor in model.state_dict().items() if ".router." in name}
    assert routers
    assert all(torch.equal(a[name], tensor) for name, tensor in routers.items())


def test_the_command_asks_for_weights_and_takes_small_steps(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--data", str(tmp_path), "--out", str(tmp_path / "o"), "--qat", "--steps", "1"])
    assert done.exit_code == 2
    assert "--start-from" in done.output
    config = make_config(tmp_path, False, {}, {"steps": 5, "learning_rate": None}, qat=True)
    assert (config.qat, config.learning_rate, config.half_until) == (True, 2e-5, 0.0)
    with pytest.raises(UsageError, match="qat trains configurations of dense convolutions"):
        replace(config, model="small")


def test_a_scale_per_channel_rounds_quiet_channels_finely(model: ClusIR, images: list[torch.Tensor]) -> None:
    name = "refine.1.feed_forward.project"
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.weight *= torch.logspace(-2, 0, 32)[:, None, None, None]  # type: ignore[operator]
        layer.bias *= torch.logspace(-2, 0, 32)  # type: ignore[operator]
    ranges = prepare(model, images)
    x = torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(3)).clamp(*ranges.input[name])

    def error(scale: dict[str, tuple[float, ...]]) -> float:
        factor = max(ranges.output_scale[name])
        ends = ranges.output[name] if scale else tuple(end * factor for end in ranges.output[name])
        rounding = Ranges({name: ranges.input[name]}, {name: ends}, {}, scale)
        with torch.no_grad():
            plain = layer(x)
            with fake_quantised(model, rounding):
                return float((layer(x) - plain)[:, :8].square().mean())

    assert error(ranges.output_scale) < 0.1 * error({})


def test_a_scale_per_input_channel_rounds_quiet_channels_finely(model: ClusIR, images: list[torch.Tensor]) -> None:
    name = "refine.1.feed_forward.expand"
    layer = model.get_submodule(name)
    loudness = torch.logspace(-2, 0, 32)
    with torch.no_grad():
        layer.weight /= loudness[None, :, None, None]  # type: ignore[operator]
    x = torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(3)) * loudness[:, None, None]
    unrounded = (0.0, 0.0)

    def error(scale: torch.Tensor) -> float:
        ends = (float((x / scale[:, None, None]).min()), float((x / scale[:, None, None]).max()))
        rounding = Ranges({name: ends}, {name: unrounded}, {name: tuple(scale.tolist())})
        with torch.no_grad():
            plain = layer(x)
            with fake_quantised(model, rounding):
                return float((layer(x) - plain).square().mean())

    assert error(loudness) < 0.1 * error(torch.ones(32))
