"""Tracing without work that an export has no use for: half the time of a trace with symbolic sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch._dynamo.config
import torch._meta_registrations
from torch import Tensor

from clusir.export.quiet import replaced

__all__ = ["quick_tracing"]


def _transformed(out: Tensor, x: Tensor, sizes: Sequence[Any], dim: Sequence[int], *, forward: bool) -> Tensor:
    """What a Fourier transform returns, in plain order. torch's own form sorts the strides of the picture: each
    comparison of two is a question to the solver and a guard of the program, and strides are no part of ONNX."""
    return x.new_empty(sizes, dtype=out.dtype)


@contextlib.contextmanager
def quick_tracing() -> Iterator[None]:
    """Inside, fake tensors are not looked up in torch's cache (with symbolic sizes hardly one is found, and what goes
    in is made a second time to be checked), and transforms are asked for their sizes alone."""
    with (
        replaced(torch._meta_registrations, "_exec_fft", _transformed),
        replaced(torch._dynamo.config, "fake_tensor_cache_enabled", False),
    ):
        yield
