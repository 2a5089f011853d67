"""Two cheap ways in which what was recognised steers what is done [ours]: cluster gains and the tone map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clusir.layers import scale_init

__all__ = ["ClusterGain", "ToneMap"]

# Ten times the other weights' pace under Adam. Deblocking smooths where deblurring sharpens: trained on both, the first
# weights got neither (JPEG +0.07 dB) where JPEG alone reached +0.6 dB within 250 steps. With gains at the common pace
# told the right damage it stayed at -0.05 dB after 100 steps, at ten times it was +0.18 dB.
_GAIN_PACE = 10.0


class ClusterGain(nn.Module):
    """1 + 10 W pi: gains of ``width`` hidden channels from the posteriors of all levels. BxL to Bx width x1x1.

    A picture that is surely of one cluster gets that cluster's own network, with channels of it turned up, off or
    over; one multiplication a pixel and channel, where other weights for each cluster would cost their own convolution.
    Starts at 1.
    """

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.by_cluster = nn.Linear(clusters, width, bias=False)
        nn.init.zeros_(self.by_cluster.weight)

    def forward(self, posterior: Tensor) -> Tensor:
        gain: Tensor = 1 + _GAIN_PACE * self.by_cluster(posterior)
        return gain[:, :, None, None]


class ToneMap(nn.Module):
    """image * (1 + gain) + shift, with a gain and a shift per colour that vary slowly over the picture.

    Haze inverts so exactly (J = I / t + A (1 - 1 / t), Koschmieder's scattering model) and darkness nearly: the large
    part of these corrections is smooth, and needs neither the full-resolution layers nor, in INT8, their 8 bits.
    features: Bx width xhxw of the deepest level; image: Bx3xHxW; returns Bx3xHxW. Starts as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.coefficients = scale_init(nn.Conv2d(width, 6, 3, padding=1), 0.0)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        coefficients = self.coefficients(features)
        coefficients = F.interpolate(coefficients, size=image.shape[-2:], mode="bilinear", align_corners=False)
        gain, shift = coefficients.chunk(2, dim=1)
        return image + gain * image + shift
