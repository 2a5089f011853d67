"""rfft2 + irfft2 beside torch.fft, alone and with something between, for the benchmark page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.lowering.fft import Form
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import write_onnx
from tests.bench.timing import alternate, ort_call, torch_call

__all__ = ["CASES", "CONTENDERS", "bench_transforms"]

CASES = ("", ", masked", ", rectified")  # what stands between the transforms, as the names of the contenders end
CONTENDERS = ("torch.fft", "MatMul", "ours")


def bench_transforms(sizes: tuple[int, ...], runs: int, threads: int, cpu_clock: bool) -> dict[int, dict[str, Any]]:
    """rfft2 + irfft2 of [1, 48, N, N] on ONNX Runtime beside torch.fft, ``runs`` turns for each of ``sizes``.

    Each size has a row for "torch.fft", "MatMul" (the plain form) and "ours" with each of CASES behind the name:
    nothing between the transforms, a real mask, or a ReLU of the real and imaginary parts. Times are in milliseconds
    (of the processor with ``cpu_clock``), ``error`` is relative to torch.fft's largest value.
    """
    return {n: _bench_size(n, runs, threads, cpu_clock) for n in sizes}


class _Transform(nn.Module):
    """rfft2, what the case puts between, irfft2.

    The ReLU is there because no other basis will do for it: it needs the complex values themselves, as the convolutions
    of a Fourier block do, and takes so little time that the ratio is that of the transforms.
    """

    def __init__(self, size: int, case: str) -> None:
        super().__init__()
        self.rectified = case == ", rectified"
        distance = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
        self.mask = nn.Parameter(torch.exp(-20 * distance), requires_grad=False) if case == ", masked" else None

    def forward(self, image: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(image)
        spectrum = spectrum if self.mask is None else spectrum * self.mask
        if self.rectified:
            spectrum = torch.view_as_complex(torch.relu(torch.view_as_real(spectrum)))
        return torch.fft.irfft2(spectrum, s=image.shape[-2:])


def _bench_size(n: int, runs: int, threads: int, cpu_clock: bool) -> dict[str, Any]:
    image = torch.randn(1, 48, n, n, generator=torch.Generator().manual_seed(n))
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    forms: tuple[tuple[str, Form], ...] = (("MatMul", "matmul"), ("ours", "auto"))
    for case in CASES:
        module = _Transform(n, case).eval()
        expected = module(image).numpy()
        calls[f"torch.fft{case}"] = torch_call(module, image)
        for what, form in forms:
            model = write_onnx(module, (image.repeat(2, 1, 1, 1),), ["image"], ["y"], dynamic_size=False, dft=form)
            passes = [SimplifyGraph(), *(fusing_passes() if form == "auto" else [])]
            fused: onnx.ModelProto = Pipeline(passes).run(model)
            name = f"{what}{case}"
            calls[name] = call = ort_call(fused.SerializeToString(), {"image": image.numpy()}, threads)
            errors[name] = float(np.abs(call()[0] - expected).max() / np.abs(expected).max())
    times = alternate(calls, runs, cpu_clock)
    return {name: {**asdict(t), "error": errors.get(name, 0.0)} for name, t in times.items()}
