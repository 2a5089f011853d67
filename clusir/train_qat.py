"""Quantisation-aware fine-tuning: a few hundred steps in which the network feels the rounding of its INT8 file.

The same convolutions that ``clusir-export`` turns into integers are computed with rounded weights (7 bits per output
channel) and rounded inputs and outputs (8 bits, one range a tensor, clipped as the exporter clips); the gradient passes
through the rounding as if it were not there, and is zero where a value was clipped. Each batch also runs in float, with
the same weight in the loss: the float checkpoint must not pay for its INT8 file. The rounded pass is given the float
pass's routing, as tiles are. What comes out is an ordinary float checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clusir.export.quantize_equalise import channel_scale
from clusir.export.quantize_graph import FLOAT_BLOCKS, is_dense
from clusir.export.quantize_ranges import CLIPPING, HISTOGRAM_BINS
from clusir.layers import ConvFeedForward, Up
from clusir.model import ClusIR, Restoration

__all__ = ["QAT_DEFAULTS", "Ranges", "RoundedTwin", "fake_quantised", "integer_convolutions", "prepare"]

QAT_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4, "final_learning_rate": 1e-6, "warmup_steps": 20, "ema_decay": 0.99,
    "router_noise_until": 0.0, "half_until": 0.0, "stages": ((0.0, 4, 128, 1),),
}  # fmt: skip
"""What ``clusir-train --qat`` changes of TrainConfig's defaults: small steps from weights that are already good."""

_WEIGHT_LIMIT = 64  # seven bits: see clusir.export.quantize
_LEVELS = 255
Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """``input`` and ``output`` by the name of a convolution: (low <= 0, high >= 0). Where a ReLU follows, low is 0 in
    ``output``, which is then the ReLU's."""

    input: dict[str, Range]
    output: dict[str, Range]

    def to_json(self) -> dict[str, Any]:
        return {"input": self.input, "output": self.output}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ranges:
        return cls(*({k: (float(v[0]), float(v[1])) for k, v in values[part].items()} for part in ("input", "output")))


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
    """The first and the last convolution, what the tone map reads, routers, and the blocks that stay float anyway."""
    edge = name in ("stem", "head", "tone.coefficients")
    return edge or ".router." in f".{name}" or any(block in name for block in FLOAT_BLOCKS)


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


def _observe(model: ClusIR, batches: Sequence[Tensor]) -> Ranges:
    ends: dict[tuple[str, str], Range] = {}
    counts: dict[tuple[str, str], NDArray[np.int64]] = {}

    def widen(name: str, *values: Tensor) -> None:
        for part, value in zip(("input", "output"), values, strict=True):
            low, high = ends.get((part, name), (0.0, 0.0))
            ends[part, name] = min(low, float(value.min())), max(high, float(value.max()))

    def count(name: str, *values: Tensor) -> None:
        for part, value in zip(("input", "output"), values, strict=True):
            low, high = ends[part, name]
            if high > low:
                found = torch.histc(value.float().cpu(), HISTOGRAM_BINS, low, high).numpy().astype(np.int64)
                counts[part, name] = counts.get((part, name), 0) + found

    _run_watched(model, batches, widen)
    _run_watched(model, batches, count)
    clip = CLIPPING["mse"]
    assert clip is not None
    for key, histogram in counts.items():
        ends[key] = clip(histogram, np.linspace(*ends[key], HISTOGRAM_BINS + 1))
    parts = ({name: ends[p, name] for p, name in ends if p == part} for part in ("input", "output"))
    return Ranges(*parts)


@contextmanager
def fake_quantised(model: ClusIR, ranges: Ranges) -> Iterator[None]:
    """Within the context the integer convolutions compute with rounded weights, inputs and outputs."""
    changed = {name: m for name, m in integer_convolutions(model).items() if name in ranges.input}
    for name, module in changed.items():
        module.forward = _RoundedConvolution(module, ranges.input[name], ranges.output[name])  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in changed.values():
            del module.forward


class _RoundedConvolution:
    def __init__(self, module: nn.Conv2d, source: Range, result: Range) -> None:
        self.module, self.source, self.result = module, source, result

    def __call__(self, x: Tensor) -> Tensor:
        m = self.module
        out = F.conv2d(_rounded(x, self.source), round_weight(m.weight), m.bias, m.stride, m.padding, m.dilation)
        return _rounded(out, self.result)


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

    def forward(self, image: Tensor) -> Restoration:
        plain: Restoration = self.model(image)
        routing = tuple((p.detach(), g.detach()) for p, g in zip(plain.posteriors, plain.gates, strict=True))
        with fake_quantised(self.model, self.ranges):
            rounded: Restoration = self.model(image, routing)
        return plain._replace(restored=torch.cat((plain.restored, rounded.restored)))
