"""Cheap ways in which what was recognised steers what is done [ours]: cluster gains, their cue, and the tone map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.layers import scale_init
from clusir.network.pooled import PooledStatistics, pooled_value
from clusir.network.traces import BANDS, TRACES, OrientedEnergies

__all__ = ["BLUR", "FAULTS", "TONAL", "ClusterGain", "DegradationCue", "ToneMap"]

# Ten times the other weights' pace under Adam. Deblocking smooths where deblurring sharpens: trained on both, the first
# weights got neither (JPEG +0.07 dB) where JPEG alone reached +0.6 dB within 250 steps. With gains at the common pace
# told the right degradation it stayed at -0.05 dB after 100 steps, at ten times it was +0.18 dB.
_GAIN_PACE = 10.0


FAULTS, BLUR, TONAL = slice(0, 2), slice(2, 3), slice(4, 6)
"""Among the families: noise and JPEG, blur, haze and low light."""


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """A layer without bias that starts as nothing."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class ClusterGain(nn.Module):
    """1 + 10 (W pi + V c): gains of ``width`` hidden channels from the posteriors pi of all levels, BxL, and, where
    there is one, the degradation cue c, Bx ``cue``. Gives Bx width x1x1.

    A picture that is surely of one cluster gets that cluster's own network, with channels of it turned up, off or
    over; one multiplication a pixel and channel, where other weights for each cluster would cost their own convolution.
    Starts at 1.
    """

    def __init__(self, clusters: int, width: int, cue: int = 0) -> None:
        super().__init__()
        self.by_cluster = nn.Linear(clusters, width, bias=False)
        nn.init.zeros_(self.by_cluster.weight)
        self.by_cue = nn.Linear(cue, width, bias=False) if cue else None
        if self.by_cue is not None:
            nn.init.zeros_(self.by_cue.weight)

    def forward(self, posterior: Tensor, cue: Tensor | None = None) -> Tensor:
        steer = self.by_cluster(posterior)
        if self.by_cue is not None and cue is not None:
            steer = steer + self.by_cue(cue)
        gain: Tensor = 1 + _GAIN_PACE * steer
        return gain[:, :, None, None]


class DegradationCue(nn.Module):
    """What clusters cannot say: in which direction and how strongly. Bx ``width``, within -1..1.

    A cluster names a kind of degradation, and its channels must serve every direction and strength of it at once.
    Trained on motion blur of 9 px alone, a network whose gains are told the direction is at +2.2 dB after 210 steps,
    one whose gains follow a cue at +1.2 after 200 and one with clusters alone at +0.9 [docs/training.md]. The cue is a
    small network on the picture's own statistics (:mod:`clusir.network.traces`), one vector for a picture, and a pooled
    statistic: tiles share it.
    """

    def __init__(self, width: int, permissions: int = 0) -> None:
        super().__init__()
        self.width = width
        self.oriented = OrientedEnergies()
        self.read = nn.Sequential(
            nn.Linear(TRACES + BANDS, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.Tanh()
        )
        self.allow = _silent(permissions, 2 * width) if permissions else None

    def statistics(self, image: Tensor, traces: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        """Traces BxTRACES and oriented energies of the picture, BxTRACES+BANDS."""
        return torch.cat((traces, self.oriented(image, pooled)), dim=1)

    def forward(
        self,
        statistics: Callable[[], Tensor],
        pooled: PooledStatistics | None = None,
        permissions: Tensor | None = None,
    ) -> Tensor:
        """``statistics`` gives what :meth:`statistics` does; it is not asked where the cue is given."""

        def read() -> Tensor:
            if self.allow is None or permissions is None:
                out: Tensor = self.read(statistics())
                return out
            enter, *rest = self.read
            hidden: Tensor = enter(statistics()) + _GAIN_PACE * self.allow(permissions - 1)
            for layer in rest:
                hidden = layer(hidden)
            return hidden

        return pooled_value(pooled, (self.width,), read)


class ToneMap(nn.Module):
    """image * (1 + gain) + shift, with a gain and a shift per colour that vary slowly over the picture.

    Haze inverts so exactly (J = I / t + A (1 - 1 / t), Koschmieder's scattering model) and darkness nearly: the large
    part of these corrections is smooth, and needs neither the full-resolution layers nor, in INT8, their 8 bits.
    features: Bx width xhxw of the deepest level; image: Bx3xHxW; returns Bx3xHxW. Starts as the identity.
    """

    def __init__(self, width: int, permissions: int = 0) -> None:
        super().__init__()
        self.width = width
        self.coefficients = scale_init(nn.Conv2d(width, 6, 3, padding=1), 0.0)
        self.allow = _silent(permissions, width) if permissions else None

    def forward(
        self,
        features: Tensor,
        image: Tensor,
        pooled: PooledStatistics | None = None,
        permissions: Tensor | None = None,
    ) -> Tensor:
        """With ``permissions`` Bx6 (not asked where ``pooled`` replays) a gain of each feature follows them, and the
        map is the identity where neither haze nor darkness may be mended: nothing else may shift a picture's tones."""
        if self.allow is None:
            return self._map(self.coefficients(features), image)

        def steer() -> Tensor:
            assert permissions is not None
            gains = 1 + _GAIN_PACE * self.allow(permissions - 1)  # type: ignore[misc]
            return torch.cat((gains, permissions[:, TONAL].amax(dim=1, keepdim=True)), dim=1)

        steered = pooled_value(pooled, (self.width + 1,), steer)[:, :, None, None]
        return self._map(self.coefficients(features * steered[:, :-1]) * steered[:, -1:], image)

    @staticmethod
    def _map(coefficients: Tensor, image: Tensor) -> Tensor:
        coefficients = F.interpolate(coefficients, size=image.shape[-2:], mode="bilinear", align_corners=False)
        gain, shift = coefficients.chunk(2, dim=1)
        return image + gain * image + shift
