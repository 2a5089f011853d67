"""The parts every level is built of: norms, resampling, channel attention, feed-forward and the wavelet transformer
block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.network.pooled import PooledStatistics, over_batch, pooled_value
from clusir.network.wavelet import haar_forward, haar_inverse

__all__ = [
    "ChannelAttention",
    "ChannelLayerNorm",
    "ConvFeedForward",
    "Down",
    "FeedForwardBlock",
    "GatedFeedForward",
    "Up",
    "WaveletTransformerBlock",
    "make_feed_forward",
    "make_norm",
    "scale_init",
]

# Residual branches start small: a network without norms is stable from the first step (the idea of Fixup and
# LayerScale), and, unlike a separate scale, a small initial weight costs nothing at inference.
_BRANCH_INIT = 0.1


def scale_init(conv: nn.Conv2d, scale: float = _BRANCH_INIT) -> nn.Conv2d:
    """Scale a convolution's initial weights (0 makes its branch start as nothing) and zero its bias."""
    with torch.no_grad():
        conv.weight.mul_(scale)
        if conv.bias is not None:
            conv.bias.zero_()
    return conv


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each pixel (Restormer's, with bias), BxCxHxW to the same."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


def make_norm(kind: str, width: int) -> nn.Module:
    """``layer``: channel LayerNorm; ``none``: identity, which leaves the convolutions' blocked layout alone."""
    return ChannelLayerNorm(width) if kind == "layer" else nn.Identity()


class Down(nn.Module):
    """Halve the resolution: BxCxHxW to Bx C' xH/2xW/2. ``strided`` is DRUNet's 2x2 convolution, ``shuffle``
    Restormer's."""

    def __init__(self, width: int, wider: int, kind: str) -> None:
        super().__init__()
        self.body: nn.Module
        if kind == "strided":
            self.body = nn.Conv2d(width, wider, 2, stride=2, bias=False)
        else:
            self.body = nn.Sequential(nn.Conv2d(width, wider // 4, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class Up(nn.Module):
    """Double the resolution: BxCxHxW to Bx C' x2Hx2W by convolution and pixel shuffle (1x1 for ``strided``, else
    3x3)."""

    def __init__(self, width: int, narrower: int, kind: str) -> None:
        super().__init__()
        kernel = 1 if kind == "strided" else 3
        self.body = nn.Conv2d(width, narrower * 4, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x), 2)


class ChannelAttention(nn.Module):
    """Multi-head attention between channels (MDTA of Restormer, arXiv 2111.09881): cost is linear in the pixels.

    q, k, v come from 1x1 convolutions, each followed by a depthwise 3x3 where ``depthwise`` is set. With ``context``
    the keys and values come from there (cross-attention). BxCxHxW to the same.

    The matrices of attention are pooled statistics. Where they are given, queries and keys are not computed, and what
    remains is linear in the values: output projection, attention and, without ``depthwise``, the value projection are
    multiplied first, and one matrix is applied to the pixels.
    """

    def __init__(self, width: int, heads: int, depthwise: bool, context_kernel: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.query = self._projection(width, width, depthwise, 3)
        self.key_value = self._projection(width, 2 * width, depthwise, context_kernel)
        self.project = nn.Conv2d(width, width, 1, bias=False)

    @staticmethod
    def _projection(width: int, out: int, depthwise: bool, kernel: int) -> nn.Module:
        first = nn.Conv2d(width, out, 1, bias=False)
        if not depthwise:
            return first
        return nn.Sequential(first, nn.Conv2d(out, out, kernel, padding=kernel // 2, groups=out, bias=False))

    def forward(self, x: Tensor, context: Tensor | None = None, pooled: PooledStatistics | None = None) -> Tensor:
        context = x if context is None else context
        batch, width, height, columns = x.shape
        if pooled is not None and pooled.replays:
            return self._apply_given(context, pooled)
        shape = (batch, self.heads, width // self.heads, height * columns)
        q = self.query(x).reshape(shape)
        k, v = (t.reshape(shape) for t in self.key_value(context).chunk(2, dim=1))
        matrix = pooled_value(pooled, (self.heads, shape[2], shape[2]), lambda: self._matrix(q, k, pooled))
        out: Tensor = self.project((matrix @ v).reshape(batch, width, height, columns))
        return out

    def _matrix(self, q: Tensor, k: Tensor, pooled: PooledStatistics | None) -> Tensor:
        """The attention matrices B x heads x c x c of q and k, B x heads x c x N."""
        # Normalising the small product instead of the two maps is the same number and saves passes over every pixel;
        # 1/sqrt(N) keeps sums of squares away from float16's limit.
        scale = q.shape[-1] ** -0.5
        q, k = q * scale, k * scale
        q_norm = over_batch(pooled, q.square().sum(-1, keepdim=True)).sqrt().clamp_min(1e-6)
        k_norm = over_batch(pooled, k.square().sum(-1, keepdim=True)).sqrt().clamp_min(1e-6)
        logits = over_batch(pooled, q @ k.transpose(-2, -1)) / (q_norm * k_norm.transpose(-2, -1))
        return torch.softmax(logits * self.temperature, dim=-1)

    def _apply_given(self, context: Tensor, pooled: PooledStatistics) -> Tensor:
        """The same from given matrices, without queries and keys."""
        batch, width, height, columns = context.shape
        c = width // self.heads
        matrix = pooled.take((self.heads, c, c))
        leave = self.project.weight.reshape(width, self.heads, c).transpose(0, 1)  # heads x width x c
        mixed = (leave @ matrix).transpose(1, 2).reshape(-1, width, width)  # sum over heads of P_h A_h, side by side
        if isinstance(self.key_value, nn.Sequential):
            first, spread = self.key_value
            assert isinstance(first, nn.Conv2d)
            assert isinstance(spread, nn.Conv2d)
            value = F.conv2d(context, first.weight[width:])
            reach = spread.kernel_size[0] // 2
            value = F.conv2d(value, spread.weight[width:], padding=reach, groups=width)
        else:
            weight = self.key_value.weight
            assert isinstance(weight, Tensor)
            value, mixed = context, mixed @ weight[width:].reshape(width, width)
        return (mixed @ value.reshape(batch, width, height * columns)).reshape(batch, width, height, columns)


class GatedFeedForward(nn.Module):
    """GDFN of Restormer: 1x1 expand, depthwise 3x3, GELU gate, 1x1 project. BxCxHxW to the same."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.expand = nn.Conv2d(width, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project = scale_init(nn.Conv2d(hidden, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)
        out: Tensor = self.project(F.gelu(gate) * value)
        return out


class ConvFeedForward(nn.Module):
    """Two dense 3x3 convolutions around a ReLU (the block of DRUNet, arXiv 2008.13751). BxCxHxW to the same.

    Per MAC it is the form that CPU runtimes and INT8 kernels run closest to their peak. ``gain`` (Bx hidden x1x1)
    weighs the hidden channels of each picture.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.expand = nn.Conv2d(width, hidden, 3, padding=1)
        self.project = scale_init(nn.Conv2d(hidden, width, 3, padding=1))
        nn.init.kaiming_normal_(self.expand.weight, nonlinearity="relu")

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        hidden = F.relu(self.expand(x))
        out: Tensor = self.project(hidden if gain is None else hidden * gain)
        return out


def make_feed_forward(kind: str, width: int, ratio: float) -> nn.Module:
    """``gdfn`` or ``conv``: see :class:`GatedFeedForward` and :class:`ConvFeedForward`."""
    return GatedFeedForward(width, ratio) if kind == "gdfn" else ConvFeedForward(width, ratio)


class WaveletAttention(nn.Module):
    """Attend in the Haar low band, let the result gate the high bands, transform back. BxCxHxW (H, W even) to the
    same."""

    def __init__(self, width: int, heads: int, depthwise: bool) -> None:
        super().__init__()
        self.attention = ChannelAttention(width, heads, depthwise)
        self.high = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=False)
        self.gate = nn.Conv2d(width, 3 * width, 1)
        self.project = scale_init(nn.Conv2d(width, width, 1, bias=False))

    def forward(self, x: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        low, high = haar_forward(x)
        low = self.attention(low, pooled=pooled)
        high = self.high(high) * torch.sigmoid(self.gate(low))
        out: Tensor = self.project(haar_inverse(low, high))
        return out


class WaveletTransformerBlock(nn.Module):
    """X <- X + WaveletAttention(norm X); X <- X + FeedForward(norm X). BxCxHxW (H, W even) to the same."""

    def __init__(self, width: int, heads: int, depthwise: bool, norm: str, feed_forward: str, ratio: float) -> None:
        super().__init__()
        self.norm_attention = make_norm(norm, width)
        self.attention = WaveletAttention(width, heads, depthwise)
        self.norm_feed_forward = make_norm(norm, width)
        self.feed_forward = make_feed_forward(feed_forward, width, ratio)

    def forward(self, x: Tensor, pooled: PooledStatistics | None = None) -> Tensor:
        x = x + self.attention(self.norm_attention(x), pooled)
        out: Tensor = x + self.feed_forward(self.norm_feed_forward(x))
        return out


class FeedForwardBlock(nn.Module):
    """X <- X + FeedForward(norm X): a decoder block of a configuration without decoder attention. BxCxHxW to the
    same. ``gain``: see :class:`ConvFeedForward`, the one form that takes it."""

    def __init__(self, width: int, norm: str, feed_forward: str, ratio: float) -> None:
        super().__init__()
        self.norm = make_norm(norm, width)
        self.feed_forward = make_feed_forward(feed_forward, width, ratio)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        x_norm = self.norm(x)
        out: Tensor = x + (self.feed_forward(x_norm) if gain is None else self.feed_forward(x_norm, gain))
        return out
