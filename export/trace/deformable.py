"""Deformable convolution in plain operators, for what libraries have as a kernel of their own.

Opset 18 has no such operator. A sample between pixels is its four corners, each gathered as a vector of channels and
weighted; a corner outside the map counts nothing. The definition is that of X. Zhu et al., Deformable ConvNets v2,
arXiv 1811.11168; the order of the offsets is torchvision's and mmcv's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clusir.export.subjects.importable import StandIn, importable
from clusir.export.trace.rewrites import between

__all__ = ["NOTE", "deformable_convolution", "mmcv_importable", "torchvision_kernel"]

NOTE = "mmcv is not installed; its deformable convolution is computed as the samples and products that it stands for"


def deformable_convolution(
    image: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor, mask: Tensor | None, steps: tuple[Any, Any, Any]
) -> Tensor:
    """image: BxCxHxW; weight: OxC/GxKhxKw; offset: Bx(D 2 Kh Kw)xH'xW', the way down, then right, of each tap; mask:
    Bx(D Kh Kw)xH'xW' or None; D groups of channels share offsets. ``steps``: stride, padding and dilation, each a
    number or a pair. Returns BxOxH'xW'."""
    (down, right), (above, left), (apart, aside) = (_pair(s) for s in steps)
    (b, c, h, w), (made, per, high, wide) = image.shape, weight.shape
    taps, (rows, columns) = high * wide, offset.shape[2:]
    shared = offset.shape[1] // (2 * taps)
    ways = offset.reshape(b * shared, taps, 2, rows, columns)
    tap = torch.arange(taps, device=image.device).view(taps, 1, 1)
    y = torch.arange(rows, device=image.device).view(rows, 1) * down - above + tap // wide * apart + ways[:, :, 0]
    x = torch.arange(columns, device=image.device) * right - left + tap % wide * aside + ways[:, :, 1]
    if mask is not None:
        mask = mask.reshape(b * shared, taps, rows, columns)
    pixels = image.reshape(b * shared, c // shared, h * w).transpose(1, 2).reshape(b * shared * h * w, c // shared)
    first = torch.arange(b * shared, device=image.device).view(b * shared, 1, 1, 1) * (h * w)
    samples: Any = 0
    sides = [_side(side, share, w) for side, share in _around(x)]
    for near, row in (_side(side, share, h) for side, share in _around(y)):
        line = first + row * w
        for close, column in sides:
            share = near * close if mask is None else near * close * mask
            place = line + column
            corner = pixels.index_select(0, place.reshape(-1)).reshape(b * shared, taps, rows * columns, c // shared)
            samples = samples + corner * share.reshape(b * shared, taps, rows * columns, 1)
    groups = c // per
    samples = samples.reshape(b, shared, taps, rows * columns, c // shared).permute(0, 1, 4, 2, 3)
    samples = samples.reshape(b, groups, per * taps, rows * columns)
    out = weight.reshape(groups, made // groups, per * taps) @ samples
    out = out.reshape(b, made, rows, columns)
    return out if bias is None else out + bias.view(-1, 1, 1)


def _around(place: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The whole coordinates on both sides of each, and their shares of a sample there."""
    low = place.floor()
    part = place - low
    return (low, 1 - part), (low + 1, part)


def _side(place: Tensor, share: Tensor, length: Any) -> tuple[Tensor, Tensor]:
    """A share, nothing outside the map, and the index along an axis of ``length``."""
    share = share * ((place >= 0) & (place <= length - 1)).to(share.dtype)
    return share, between(place, 0, length - 1).long()


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def torchvision_kernel(image: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *how: Any) -> Tensor:
    """``torch.ops.torchvision.deform_conv2d``, the operator that torchvision.ops calls."""
    *numbers, _, _, masked = how  # stride, padding, dilation as two numbers each; groups; groups of offsets
    steps = (tuple(numbers[0:2]), tuple(numbers[2:4]), tuple(numbers[4:6]))
    return deformable_convolution(image, weight, bias, offset, mask if masked else None, steps)


# -- mmcv.ops, where mmcv is not installed -----------------------------------------------------------------------------


def _modulated(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **more: Any
) -> Tensor:
    return deformable_convolution(input, weight, bias, offset, mask, _steps(*how, **more))


def _plain(input: Tensor, offset: Tensor, weight: Tensor, *how: Any, **more: Any) -> Tensor:
    return deformable_convolution(input, weight, None, offset, None, _steps(*how, **more))


def _steps(stride: Any = 1, padding: Any = 0, dilation: Any = 1, *_: Any, **__: Any) -> tuple[Any, Any, Any]:
    """The groups that follow are read from the shapes."""
    return stride, padding, dilation


class _ModulatedLayer(nn.Module):
    """mmcv.ops.ModulatedDeformConv2d: (x, offset, mask) to its answer."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, *how: Any, **more: Any) -> None:
        super().__init__()
        told = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "deform_groups": 1, "bias": True}
        told |= {**dict(zip(told, how, strict=False)), **more}
        self.kernel_size, self.deform_groups, groups = _pair(kernel_size), told["deform_groups"], told["groups"]
        self.how = (told["stride"], told["padding"], told["dilation"])
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if told["bias"] else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deformable_convolution(x, self.weight, self.bias, offset, mask, self.how)


@contextlib.contextmanager
def mmcv_importable() -> Iterator[StandIn]:
    """Inside, ``mmcv.ops`` can be imported for its deformable convolutions; ``used`` says whether the stand-in was."""
    names = {"modulated_deform_conv2d": _modulated, "deform_conv2d": _plain, "ModulatedDeformConv2d": _ModulatedLayer}
    with importable({"mmcv": {}, "mmcv.ops": names}) as used:
        yield used
