"""Stand-ins for the patterns of published restorers: each a few lines written for these tests, with the field's habits.

Every class maps a picture Bx3xHxW to one of the same shape. Router decisions follow the brightness of the picture, so a
test forces a route by choosing an input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralConvolution(nn.Module):
    """rfft2 with norm, a convolution over [re, im], torch.complex, irfft2 with s and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        mixed = self.mix(torch.cat([spectrum.real, spectrum.imag], 1))
        re, im = F.relu(mixed).chunk(2, 1)
        return x + torch.fft.irfft2(torch.complex(re, im), s=x.shape[-2:], norm="ortho")


class CroppedSpectrum(nn.Module):
    """s that cuts and s that pads, 1-D transforms along one axis, norm forward."""

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.irfft2(torch.fft.rfft2(x, s=(12, 20), norm="forward"), s=(12, 20), norm="forward")
        rows = torch.fft.ifft(torch.fft.fft(low, n=18, dim=2), dim=2).real
        return x + F.interpolate(low + rows[:, :, :12], x.shape[-2:], mode="bilinear")


class PatchAttention(nn.Module):
    """Circular convolution inside patches by FFT, the picture padded to whole patches and cut back."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch
        self.queries = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        p, (b, c, h, w) = self.patch, x.shape
        padded = F.pad(self.queries(x), (0, (p - w % p) % p, 0, (p - h % p) % p))
        patches = padded.reshape(b, 2 * c, padded.shape[2] // p, p, padded.shape[3] // p, p).permute(0, 1, 2, 4, 3, 5)
        q, k = patches.chunk(2, 1)
        out = torch.fft.irfft2(torch.fft.rfft2(q) * torch.fft.rfft2(k), s=(p, p))
        out = out.permute(0, 1, 2, 4, 3, 5).reshape(b, c, padded.shape[2], padded.shape[3])
        return x + 0.1 * out[:, :, :h, :w]


class AmplitudePhase(nn.Module):
    """Amplitude and phase apart, the amplitude refined, torch.polar, the real part of a full inverse transform."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        amplitude, phase = spectrum.abs(), spectrum.angle()
        refined = amplitude * torch.sigmoid(self.refine(torch.log1p(amplitude)))
        return torch.fft.ifft2(torch.polar(refined, phase)).real


class ComplexFilter(nn.Module):
    """A learned complex factor per channel, a complex product of two spectra, division, conjugate and power."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 1, 2) * 0.5)
        self.register_buffer("turn", torch.tensor([0.3 + 0.9j, 1.0 - 0.2j, 0.1j]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        filtered = spectrum * torch.view_as_complex(self.weight) * self.turn
        wiener = spectrum.conj() * filtered / (spectrum.abs() ** 2 + 4.0) + (filtered / (2 + spectrum**2)).conj()
        return x + torch.fft.irfft2(wiener, s=x.shape[-2:])


class ShiftedMask(nn.Module):
    """fftshift, a centred window whose bounds follow the size, ifftshift, abs: the usual high-pass."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        mask = torch.ones_like(x)
        mask[:, :, h // 2 - 3 : h // 2 + 3, w // 2 - h // 8 : w // 2 + h // 8] = 0
        shifted = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
        return torch.fft.ifft2(torch.fft.ifftshift(shifted * mask, dim=(-2, -1)), norm="forward").abs()


class IntegerHalves(nn.Module):
    """``int(h / 2)`` to centre the spectrum, and another ``int`` that is a type and a plain conversion."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        assert isinstance(int("3"), int)
        assert type(int(2.7)) == int  # noqa: E721
        shifts = (int(h / 2), int(w * 0.5))
        centred = torch.roll(torch.fft.fft2(x, norm="forward"), shifts, dims=(2, 3))
        rows = torch.arange(h).view(-1, 1) - shifts[0]
        columns = torch.arange(w) - shifts[1]
        centred = centred * ((rows**2 + columns**2) > 30)
        back = torch.roll(centred, (-int(h / 2), -int(w / 2)), dims=(2, 3))
        return torch.fft.ifft2(back, norm="forward").abs()


class HalvedPatches(nn.Module):
    """A pyramid by ``scale_factor=0.5``, and patches of 4 at the half size: rules on ``trunc(0.5 h)``."""

    def forward(self, x: Tensor) -> Tensor:
        half = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        b, c, h, w = half.shape
        spectrum = torch.fft.rfft2(half.view(b, c, h // 4, 4, w // 4, 4).transpose(3, 4))
        patches = torch.fft.irfft2(spectrum * spectrum.abs(), s=(4, 4))
        half = patches.transpose(3, 4).reshape(b, c, h, w)
        return x + nn.functional.interpolate(half, scale_factor=2.0, mode="nearest")


class ImaginaryUnit(nn.Module):
    """re + 1j * im, as phase-swapping networks write it."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        amplitude, phase = torch.abs(spectrum), torch.angle(spectrum)
        re, im = amplitude * torch.cos(phase) * 1.2, amplitude * torch.sin(phase)
        return torch.fft.irfft2(re + 1j * im, s=x.shape[-2:])


class PhaseOnly(nn.Module):
    """Complex exp, complex where against zeros_like, complex stack and sum."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        rotation = torch.exp(1j * torch.angle(spectrum))
        strong = torch.where(spectrum.abs() > 0.05, spectrum, torch.zeros_like(spectrum))
        both = torch.stack([strong, spectrum.abs() * rotation, spectrum * rotation.conj() * (1 - 2j)]).sum(0)
        return torch.fft.irfft2(both, s=x.shape[-2:], norm="ortho")


class FrequencyMask(nn.Module):
    """Masks built from the size: fftfreq, rfftfreq, linspace and arange."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        fy = torch.fft.fftfreq(h, device=x.device)[:, None]
        fx = torch.fft.rfftfreq(w, device=x.device)[None]
        soft = torch.sigmoid((self.cut - torch.sqrt(fy**2 + fx**2)) / 0.05)
        ramp = torch.linspace(-1, 1, h)[:, None] * torch.arange(w // 2 + 1)[None] / w
        return torch.fft.irfft2(torch.fft.rfft2(x) * soft * (1 + 0.1 * ramp), s=(h, w))


class LearnedWindow(nn.Module):
    """A window whose bounds the network computes, picture by picture in a Python loop (so the batch is fixed)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        h, w = x.shape[-2:]
        rate = self.rate(x)
        for i in range(x.shape[0]):
            dy = (h // 3 * rate[i, 0]).int()
            dx = (w // 3 * rate[i, 1]).int()
            mask[i, :, h // 2 - dy : h // 2 + dy, w // 2 - dx : w // 2 + dx] = 1
        spectrum = torch.roll(torch.fft.fft2(x), shifts=(h // 2, w // 2), dims=(2, 3)) * mask
        return torch.fft.ifft2(torch.roll(spectrum, shifts=(-(h // 2), -(w // 2)), dims=(2, 3))).real


def _experts(count: int = 3) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(3, 3, 2 * i + 1, padding=i) for i in range(count))


def brightness_scores(x: Tensor, count: int = 3) -> Tensor:
    """BxE probabilities: the first expert for dark pictures, the last for bright ones."""
    level = x.mean((1, 2, 3))[:, None]
    centres = torch.linspace(0.12, 0.9, count)[None]  # no two of them as far from the mean of a ramp
    return torch.softmax(-30 * (level - centres) ** 2, dim=1)


class TopKGather(nn.Module):
    """All experts, then top-k and gather of their stacked results: routed, and yet a function that traces."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()

    def forward(self, x: Tensor) -> Tensor:
        weight, index = brightness_scores(x).topk(2, dim=1)
        stacked = torch.stack([expert(x) for expert in self.experts], dim=1)
        index = index[:, :, None, None, None].expand(-1, -1, *stacked.shape[2:])
        return x + (stacked.gather(1, index) * weight[:, :, None, None, None]).sum(1)


class IndexedExperts(nn.Module):
    """A Python list of experts indexed by a tensor; a batch is taken for one picture, as research code does."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()

    def forward(self, x: Tensor) -> Tensor:
        scores = brightness_scores(x)
        chosen = scores.argmax(1)[0]
        return x + scores[0, chosen] * self.experts[chosen](x)  # the line that cannot be traced


class CountingLoop(nn.Module):
    """``if tokens > 0`` around every expert, each run on the pictures that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()

    def forward(self, x: Tensor) -> Tensor:
        scores = brightness_scores(x)
        chosen = scores.argmax(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens = (chosen == number).sum()
            if tokens > 0:
                rows = chosen == number
                out[rows] = scores[rows, number][:, None, None, None] * expert(x[rows])
        return x + out


class SparseDispatch(nn.Module):
    """nonzero, split by counts, experts on their share, index_add back: the sparse dispatcher of language models."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()

    def gates(self, x: Tensor) -> Tensor:
        scores = brightness_scores(x)
        weight, index = scores.topk(2, dim=1)
        return torch.zeros_like(scores).scatter(1, index, weight / weight.sum(1, keepdim=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gates(x)
        expert_of, row = gates.t().nonzero(as_tuple=True)
        counts = (gates > 0).sum(0).tolist()
        shares = torch.split(x[row], counts)
        results = torch.cat([expert(share) for expert, share in zip(self.experts, shares, strict=True)])
        weighted = results * gates[row, expert_of][:, None, None, None]
        return torch.zeros_like(x).index_add(0, row, weighted), gates.sum(0).var()


class Restorer(nn.Module):
    """A block between two convolutions, as networks hold their routed blocks; a tuple from the block is unpacked."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 3, 3, padding=1)
        self.block = block
        self.leave = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        out = out[0] if isinstance(out, tuple) else out
        return x + 0.5 * self.leave(torch.tanh(self.enter(x)) + out)


class RememberedRoute(nn.Module):
    """Chooses once and remembers: the trace sees a plain Python number, and only that expert."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()
        self.route: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.route is None:
            self.route = int(brightness_scores(x).argmax(1)[0])
        return x + self.experts[self.route](x)


class NoisyRouter(nn.Module):
    """Adds noise to the router's scores in eval too."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = _experts()

    def forward(self, x: Tensor) -> Tensor:
        scores = brightness_scores(x)
        scores = torch.softmax(scores + torch.randn_like(scores), dim=1)  # drawn in eval as well
        return sum(scores[:, i, None, None, None] * e(x) for i, e in enumerate(self.experts))


class BatchStatistics(nn.Module):
    """Normalises by statistics of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.std() + 1)
