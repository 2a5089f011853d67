"""Running a model with gradients, to learn what depends on what; its parameters are as before afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["gradients"]


@contextlib.contextmanager
def gradients(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Within it every parameter that can have a gradient asks for one; yields those by name."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    usable = {n: p for n, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    try:
        for parameter in usable.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield usable
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
