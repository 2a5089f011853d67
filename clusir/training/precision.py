"""bfloat16 where it pays: the dense convolutions of a network, everything else in float32.

Autocast would also hand bfloat16 to norms, FFTs and scatters, which the router and the Fourier split do not take
well. What pays depends on the processor [measured, `tiny`, batch 8 of 96 px, one thread]: an AMD EPYC with AVX512-BF16
takes 1.7 times as long in float32, an Intel Xeon with AVX512-BF16 and without AMX 0.77 times, and 0.69 times with the
channels last. So a run times a step of each at its start (:func:`choose_arithmetic`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.model import ClusIR

__all__ = ["ARITHMETICS", "choose_arithmetic", "half_convolutions", "is_half", "layout_of"]

ARITHMETICS = ("float32", "float32 channels_last", "bfloat16", "bfloat16 channels_last")
"""How a training step may compute: the dense convolutions' type, and the memory layout of maps and weights."""

_LEAST_CHANNELS = 32


@contextmanager
def half_convolutions(model: nn.Module) -> Iterator[None]:
    """Within the context dense convolutions compute in bfloat16 (float32 sums) and return float32.

    Convolutions that touch the picture (fewer than 32 channels on a side) keep full precision. Backward may run
    outside.
    """
    changed = [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1 and min(m.in_channels, m.out_channels) >= _LEAST_CHANNELS
    ]
    for module in changed:
        module.forward = _HalfConvolution(module)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


class _HalfConvolution:
    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        m, half = self.module, torch.bfloat16
        bias = None if m.bias is None else m.bias.to(half)
        return F.conv2d(x.to(half), m.weight.to(half), bias, m.stride, m.padding, m.dilation).to(x.dtype)


def is_half(arithmetic: str) -> bool:
    """Whether dense convolutions run in bfloat16."""
    return arithmetic.startswith("bfloat16")


def layout_of(arithmetic: str) -> torch.memory_format:
    """The layout that weights and pictures have."""
    return torch.channels_last if arithmetic.endswith("channels_last") else torch.contiguous_format


def choose_arithmetic(model: ClusIR, batch: int, crop_px: int, *, half: bool, rounds: int = 3) -> str:
    """The one of ``ARITHMETICS`` (the first two, unless ``half``) in which a step on the CPU is fastest, here and now.

    Times forward and backward of a copy on ``batch`` grey pictures of ``crop_px`` square, in turns, best of
    ``rounds``; the random state is left as it was.
    """
    names = ARITHMETICS if half else ARITHMETICS[:2]
    best = dict.fromkeys(names, float("inf"))
    with torch.random.fork_rng(devices=[]):
        twins = {name: copy.deepcopy(model).to(memory_format=layout_of(name)) for name in names}  # type: ignore[call-overload]
        for _ in range(rounds):
            for name, twin in twins.items():
                image = torch.full((batch, 3, crop_px, crop_px), 0.5).contiguous(memory_format=layout_of(name))
                start = time.perf_counter()
                with half_convolutions(twin) if is_half(name) else nullcontext():
                    error = twin(image).restored.square().mean()
                torch.autograd.backward(error)
                best[name] = min(best[name], time.perf_counter() - start)
    return min(best, key=lambda name: best[name])
