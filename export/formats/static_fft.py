"""The frequency split of a network for one picture size, as products with constant matrices.

Runtimes without complex tensors, and without a compiler that would fold a transform's tables, are given the transform
itself: along the rows ``rfft`` is one real matrix, along the columns a complex one, written for interleaved pairs
(``clusir.export.lowering.dft``). The mask is real, so a pair is only scaled between the two.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.errors import ExportError
from clusir.export.base import PassResult
from clusir.export.lowering import dft
from clusir.network.frequency import FourierSplit, radial_frequency
from clusir.network.pooled import PooledStatistics

__all__ = ["MatrixSplit", "SplitByMatrices"]


class MatrixSplit(FourierSplit):
    """The same (low, high) as the FourierSplit it is made of, for features BxCx``height``x``width`` only."""

    def __init__(self, split: FourierSplit, height: int, width: int) -> None:
        nn.Module.__init__(self)
        self.groups, self.cutoff, self.size = split.groups, split.cutoff, (height, width)
        self.across = self._constant(dft.real_forward(width, dft.half_bins(width), width**-0.5))
        self.down = self._constant(dft.complex_matrix(height, False, height**-0.5))
        self.up = self._constant(dft.complex_matrix(height, True, height**-0.5))
        self.back = self._constant(dft.real_inverse(width, width**-0.5))
        self.rho = nn.Parameter(radial_frequency(height, width).T.contiguous(), requires_grad=False)  # K x H

    @staticmethod
    def _constant(matrix: dft.Matrix) -> nn.Parameter:
        """A matrix that acts from the right, as the weight of a linear layer."""
        return nn.Parameter(torch.from_numpy(np.ascontiguousarray(matrix.T)).float(), requires_grad=False)

    def forward(self, x: Tensor, cue: Tensor, pooled: PooledStatistics | None = None) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        bins = width // 2 + 1
        mask = self.mask(x, cue, self.rho, pooled)[..., None]  # B x groups x 1 x K x H x 1
        z = F.linear(x, self.across).reshape(-1, height, bins, 2).permute(0, 2, 1, 3)  # BC x K x H x 2
        z = F.linear(z.reshape(-1, bins, 2 * height), self.down)
        z = z.reshape(batch, self.groups, channels // self.groups, bins, height, 2) * mask
        z = F.linear(z.reshape(-1, bins, 2 * height), self.up)
        z = z.reshape(-1, bins, height, 2).permute(0, 2, 1, 3).reshape(batch, channels, height, 2 * bins)
        low = F.linear(z, self.back)
        return low, x - low


class SplitByMatrices:
    """Replaces every FourierSplit of a network (on a copy) by its form for pictures of ``tile_px`` square."""

    name = "SplitByMatrices"

    def __init__(self, tile_px: int) -> None:
        self.tile_px = tile_px

    def requires(self, model: nn.Module) -> None:
        if model.training:
            raise ExportError("the model is in training mode; call eval() first")

    def apply(self, model: nn.Module) -> PassResult[nn.Module]:
        model = copy.deepcopy(model)
        splits = {name: module for name, module in model.named_modules() if isinstance(module, FourierSplit)}
        sizes: dict[str, tuple[int, int]] = {}
        for name, split in splits.items():
            split.register_forward_pre_hook(lambda _, args, name=name: sizes.update({name: args[0].shape[-2:]}))
        with torch.inference_mode():
            model(torch.zeros(1, 3, self.tile_px, self.tile_px))
        for name, (height, width) in sizes.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, MatrixSplit(splits[name], height, width).eval())
        return PassResult(model, bool(sizes), (f"{len(sizes)} transforms of {self.tile_px} px tiles are matrices",))

    def ensures(self, model: nn.Module) -> None:
        left = [n for n, m in model.named_modules() if type(m) is FourierSplit]
        if left:
            raise ExportError(f"the forward pass never reached {', '.join(left)}, so its size is not known")
