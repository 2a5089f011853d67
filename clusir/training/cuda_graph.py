"""A training step's forward and backward as CUDA graphs.

The network is small: on a large GPU the thousands of kernels of a step take less time to run than to be launched one
by one. A graph launches them all at once. It holds for one shape of batch and one arithmetic; each that occurs in a
run is captured when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clusir.network.experts import SparseExperts
from clusir.network.model import Restoration
from clusir.training.precision import half_convolutions

__all__ = ["GraphedForward"]


class _Same(nn.Module):
    """The network under another name: capturing replaces a module's forward, and a network has several captures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Restoration:
        out: Restoration = self.model(image)
        return out


class GraphedForward:
    """``model`` on a CUDA device, to be called on BxCxHxW batches like itself; gradients reach its own parameters.

    The model must be in the modes (training, routers with or without noise) in which it will run: a capture keeps
    them. Experts run for every sample from now on, because dispatch by data cannot be captured.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._captured: dict[tuple[object, ...], Callable[[Tensor], Any]] = {}
        for module in model.modules():
            if isinstance(module, SparseExperts):
                module.everywhere = True

    def __call__(self, image: Tensor, *, half: bool) -> Restoration:
        modes = tuple(module.training for module in self._model.modules())
        key = (image.shape, image.stride(), half, modes)
        if key not in self._captured:
            with half_convolutions(self._model) if half else nullcontext():
                # Five passes first: cuDNN and cuFFT settle on their kernels and plans outside the capture.
                self._captured[key] = torch.cuda.make_graphed_callables(
                    _Same(self._model), (image.clone(),), num_warmup_iters=5, allow_unused_input=True
                )
        out: Restoration = self._captured[key](image)
        return out
