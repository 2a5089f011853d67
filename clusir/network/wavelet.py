"""The orthonormal Haar transform on feature maps, one level, as pixel-unshuffle and butterflies.

With a, b, c, d the four pixels of a 2x2 cell in reading order::

    LL = (a+b+c+d)/2   HL = (-a+b-c+d)/2   LH = (-a-b+c+d)/2   HH = (a-b-c+d)/2

The matrix is its own transpose's inverse: energy is kept and the inverse is the same butterflies again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["haar_forward", "haar_inverse"]


def haar_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split BxCxHxW (H, W even) into the low band BxCxH/2xW/2 and the high bands Bx3CxH/2xW/2 (HL, LH, HH)."""
    batch, channels, height, width = x.shape
    cells = F.pixel_unshuffle(x, 2).reshape(batch, channels, 4, height // 2, width // 2)
    a, b, c, d = cells.unbind(2)
    top_sum, top_diff, bottom_sum, bottom_diff = a + b, b - a, c + d, d - c
    low = (top_sum + bottom_sum) * 0.5
    high = torch.cat((top_diff + bottom_diff, bottom_sum - top_sum, bottom_diff - top_diff), dim=1) * 0.5
    return low, high


def haar_inverse(low: Tensor, high: Tensor) -> Tensor:
    """Undo :func:`haar_forward`: low BxCxhxw and high Bx3Cxhxw give BxCx2hx2w."""
    batch, channels, height, width = low.shape
    hl, lh, hh = high.chunk(3, dim=1)
    left_sum, left_diff, right_sum, right_diff = low - hl, lh - hh, low + hl, lh + hh
    cells = torch.stack(
        (left_sum - left_diff, right_sum - right_diff, left_sum + left_diff, right_sum + right_diff), dim=2
    )
    return F.pixel_shuffle(cells.reshape(batch, channels * 4, height, width) * 0.5, 2)
