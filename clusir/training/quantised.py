"""Quantisation-aware fine-tuning: a few hundred steps in which the network feels the rounding of its INT8 file.

The same convolutions that ``clusir-export`` turns into integers are computed with rounded weights (7 bits per output
channel) and rounded inputs and outputs (8 bits, scaled per channel and clipped as the exporter does); the gradient
passes through the rounding as if it were not there, and is zero where a value was clipped. Each batch also runs in
float, with the same weight in the loss: the float checkpoint must not pay for its INT8 file. The rounded pass is given
the float pass's routing, as tiles are. What comes out is an ordinary float checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clusir.network.layers import ConvFeedForward, Up
from clusir.network.model import ClusIR, Restoration
from clusir.network.router import ClusterRouter
from clusir.rounding import (
    CLIPPING,
    HISTOGRAM_BINS,
    WORTH,
    channel_scale,
    count_channels,
    error_left,
    even_scale,
    is_dense,
)

__all__ = ["QAT_DEFAULTS", "Ranges", "RoundedTwin", "fake_quantised", "integer_convolutions", "prepare"]

QAT_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5, "final_learning_rate": 1e-6, "warmup_steps": 20, "ema_decay": 0.99,
    "router_noise_until": 0.0, "half_until": 0.0, "stages": ((0.0, 4, 128, 0),),
    "orthogonality": 0.0, "balance": 0.0, "cluster": 0.0, "agreement": 0.0,
}  # fmt: skip
"""What ``clusir-train --qat`` changes of TrainConfig's defaults: small steps from weights that are already good, for
the restored picture alone. At 2e-4, with the losses of the routers, the float network lost 0.95 dB in 67 steps."""

_WEIGHT_LIMIT = 64  # seven bits: see clusir.export.quantize.steps
_LEVELS = 255
Range = tuple[float, float]
Scales = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Ranges:
    """``input`` and ``output`` by the name of a convolution: (low <= 0, high >= 0). Where a ReLU follows, low is 0 in
    ``output``, which is then the ReLU's. ``input_scale``, ``output_scale``: of each channel of the maps that sums write
    or read (see ``clusir.export.quantize.inputs`` and ``_outputs``); the range is that of the map divided by it."""

    input: dict[str, Range]
    output: dict[str, Range]
    input_scale: Scales = field(default_factory=dict)
    output_scale: Scales = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ranges:
        source, result = (
            {k: (float(v[0]), float(v[1])) for k, v in values[part].items()} for part in ("input", "output")
        )
        scales = ({k: tuple(map(float, v)) for k, v in values[f"{part}_scale"].items()} for part in ("input", "output"))
        return cls(source, result, *scales)


def integer_convolutions(model: ClusIR) -> dict[str, nn.Conv2d]:
    """The convolutions that the INT8 tile graph computes in integers, by name.

    An upsampling by 1x1 convolution and pixel shuffle counts: the exporter writes it as one transposed convolution.
    """
    shuffled = {id(m.body) for m in model.modules() if isinstance(m, Up)}
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or _stays_float(name):
            continue
        if is_dense(tuple(module.weight.shape)) or id(module) in shuffled:
            found[name] = module
    return found


def _stays_float(name: str) -> bool:
    """The first and the last convolution, what the tone map reads, and routers."""
    return name in ("stem", "head", "tone.coefficients") or ".router." in f".{name}"


def prepare(model: ClusIR, images: Iterable[Tensor]) -> Ranges:
    """Even out the hidden channels of ``model`` in place, which changes no result, then measure the ranges.

    ``images``: batches Bx3xHxW in 0..1 of the kind that calibration draws.
    """
    batches = list(images)
    _equalise(model, batches)
    return _observe(model, batches)


def _rectified(model: ClusIR) -> set[int]:
    """Identities of the convolutions whose one reader is a ReLU."""
    return {id(m.expand) for m in model.modules() if isinstance(m, ConvFeedForward)}


@torch.no_grad()
def _run_watched(model: ClusIR, batches: Sequence[Tensor], watch: Any) -> None:
    """Run the batches; ``watch(name, input, output)`` sees every integer convolution."""
    rectified = _rectified(model)
    handles = [
        module.register_forward_hook(
            lambda m, args, out, name=name: watch(name, args[0], F.relu(out) if id(m) in rectified else out)
        )
        for name, module in integer_convolutions(model).items()
    ]
    mode, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for batch in batches:
            model(batch.to(device))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()


def _equalise(model: ClusIR, batches: Sequence[Tensor]) -> None:
    blocks = {f"{name}.project": m for name, m in model.named_modules() if isinstance(m, ConvFeedForward)}
    peaks: dict[str, NDArray[np.float64]] = {}

    def watch(name: str, x: Tensor, _: Tensor) -> None:
        if name in blocks:
            peak = x.abs().amax(dim=(0, 2, 3)).double().cpu().numpy()
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak

    _run_watched(model, batches, watch)
    with torch.no_grad():
        for name, peak in peaks.items():
            block = blocks[name]
            found = channel_scale(peak, block.project.weight.abs().amax(dim=(0, 2, 3)).double().cpu().numpy())
            if found is None:
                continue
            scale = torch.from_numpy(found).to(block.expand.weight)
            block.expand.weight /= scale[:, None, None, None]
            if block.expand.bias is not None:
                block.expand.bias /= scale
            block.project.weight *= scale[None, :, None, None]


def _channel_scales(model: ClusIR, batches: Sequence[Tensor]) -> tuple[Scales, Scales]:
    """The scale of each channel of the inputs that no ReLU wrote and that gain by it, and of the outputs that no ReLU
    reads, by convolution."""
    modules, rectified = integer_convolutions(model), _rectified(model)
    # An upsampling is one transposed convolution in the file: four channels here are one there.
    merged = {f"{name}.body" for name, m in model.named_modules() if isinstance(m, Up)}
    peaks: dict[tuple[str, str], NDArray[np.float64]] = {}
    counts: dict[tuple[str, str], NDArray[np.int64]] = {}
    positive: set[str] = set(modules)

    def maps(name: str, x: Tensor, out: Tensor) -> Iterator[tuple[tuple[str, str], NDArray[np.float32]]]:
        yield ("input", name), x.float().cpu().numpy()
        if id(modules[name]) not in rectified:
            yield ("output", name), (F.pixel_shuffle(out, 2) if name in merged else out).float().cpu().numpy()

    def widen(name: str, x: Tensor, out: Tensor) -> None:
        if float(x.min()) < 0:
            positive.discard(name)
        for key, value in maps(name, x, out):
            peak = np.abs(value).max(axis=(0, 2, 3)).astype(np.float64)
            peaks[key] = np.maximum(peaks[key], peak) if key in peaks else peak

    def count(name: str, x: Tensor, out: Tensor) -> None:
        for key, value in maps(name, x, out):
            counts[key] = counts.get(key, 0) + count_channels(value, peaks[key])

    _run_watched(model, batches, widen)
    _run_watched(model, batches, count)
    source, result = {}, {}
    for (part, name), found in counts.items():
        scale = even_scale(found, peaks[part, name])
        if part == "output":
            result[name] = tuple(map(float, scale.repeat(4) if name in merged else scale))
            continue
        power = modules[name].weight.detach().double().square().sum(dim=(0, 2, 3)).cpu().numpy()
        if name not in positive and error_left(power, scale) < WORTH:
            source[name] = tuple(map(float, scale))
    return source, result


def _observe(model: ClusIR, batches: Sequence[Tensor]) -> Ranges:
    scales = dict(zip(("input", "output"), _channel_scales(model, batches), strict=True))
    factors = {
        (part, name): torch.tensor(scale)[:, None, None] for part in scales for name, scale in scales[part].items()
    }
    ends: dict[tuple[str, str], Range] = {}
    counts: dict[tuple[str, str], NDArray[np.int64]] = {}

    def parts(name: str, x: Tensor, out: Tensor) -> Iterator[tuple[str, Tensor]]:
        for part, value in (("input", x), ("output", out)):
            factor = factors.get((part, name))
            yield part, value if factor is None else value / factor.to(value)

    def widen(name: str, x: Tensor, out: Tensor) -> None:
        for part, value in parts(name, x, out):
            low, high = ends.get((part, name), (0.0, 0.0))
            ends[part, name] = min(low, float(value.min())), max(high, float(value.max()))

    def count(name: str, x: Tensor, out: Tensor) -> None:
        for part, value in parts(name, x, out):
            low, high = ends[part, name]
            if high > low:
                found = torch.histc(value.float().cpu(), HISTOGRAM_BINS, low, high).numpy().astype(np.int64)
                counts[part, name] = counts.get((part, name), 0) + found

    _run_watched(model, batches, widen)
    _run_watched(model, batches, count)
    clip = CLIPPING["mse"]
    assert clip is not None
    for key, histogram in counts.items():
        low, high = clip(histogram, np.linspace(*ends[key], HISTOGRAM_BINS + 1))
        ends[key] = float(low), float(high)
    source, result = ({name: ends[p, name] for p, name in ends if p == part} for part in ("input", "output"))
    return Ranges(source, result, scales["input"], scales["output"])


@contextmanager
def fake_quantised(model: ClusIR, ranges: Ranges) -> Iterator[None]:
    """Within the context the integer convolutions compute with rounded weights, inputs and outputs."""
    changed = {name: m for name, m in integer_convolutions(model).items() if name in ranges.input}
    for name, module in changed.items():
        module.forward = _RoundedConvolution(module, ranges, name)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in changed.values():
            del module.forward


class _RoundedConvolution:
    def __init__(self, module: nn.Conv2d, ranges: Ranges, name: str) -> None:
        self.module, self.source, self.result = module, ranges.input[name], ranges.output[name]
        self.read, self.written = (
            torch.tensor(scales.get(name, (1.0,))).to(module.weight)[:, None, None]
            for scales in (ranges.input_scale, ranges.output_scale)
        )

    def __call__(self, x: Tensor) -> Tensor:
        m = self.module
        # As in the file: the input's scales are multiplied into the weights, and the output's divided out of them.
        # Rounding per output channel does not see the latter.
        weight = round_weight(m.weight * self.read)
        out = F.conv2d(_rounded(x / self.read, self.source), weight, m.bias, m.stride, m.padding, m.dilation)
        return _rounded(out / self.written, self.result) * self.written


def round_weight(weight: Tensor) -> Tensor:
    """A convolution's weight OxIxKxK rounded to 7 bits per output channel, as the exporter rounds it."""
    scale = (weight.detach().abs().amax(dim=(1, 2, 3)) / _WEIGHT_LIMIT).clamp_min(1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    out: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_WEIGHT_LIMIT, _WEIGHT_LIMIT)
    return out


def _rounded(x: Tensor, ends: Range) -> Tensor:
    """Rounded to 256 values that include 0, and clipped."""
    low, high = ends
    if high <= low:
        return x
    step = (high - low) / _LEVELS
    out: Tensor = torch.fake_quantize_per_tensor_affine(x, step, round(-low / step), 0, _LEVELS)
    return out


class RoundedTwin(nn.Module):
    """The network in float and once more rounded, as one module: a batch of B gives 2B restored pictures, the rounded
    ones behind; posteriors and gates are the float ones."""

    def __init__(self, model: ClusIR, ranges: Ranges) -> None:
        super().__init__()
        self.model = model
        self.ranges = ranges
        # What decides the routing stays: the file's routers compute in float32, and a batch is too small for them.
        for router in (m for m in model.modules() if isinstance(m, ClusterRouter)):
            router.requires_grad_(False)

    def forward(self, image: Tensor) -> Restoration:
        plain: Restoration = self.model(image)
        routing = tuple((p.detach(), g.detach()) for p, g in zip(plain.posteriors, plain.gates, strict=True))
        with fake_quantised(self.model, self.ranges):
            rounded: Restoration = self.model(image, routing)
        return plain._replace(restored=torch.cat((plain.restored, rounded.restored)))
