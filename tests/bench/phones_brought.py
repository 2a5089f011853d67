"""Ten networks of other people's kinds on a runtime of phones: which run right, and what is said of the others.

``python -m tests.bench.phones_brought NAME`` (NAME: mnn, litert): the table of docs/measurements. Untrained weights;
structures of published restorers in a few lines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.errors import ClusirError
from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.module import export_module
from tests.export.standins import ChannelAttention, PatchSpectralAttention

DIM, SIDE = 16, 64


class Body(nn.Module):
    """A convolution, ``block`` with a residual, a convolution, and the picture."""

    def __init__(self, block: nn.Module, channels: int = 3) -> None:
        super().__init__()
        self.block = block
        self.stem, self.tail = nn.Conv2d(channels, DIM, 3, padding=1), nn.Conv2d(DIM, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        made: Tensor = x + 0.1 * self.tail(f + self.block(f))
        return made


class FourierUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * DIM, 2 * DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        parts = F.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], 1)))
        real, imaginary = parts.chunk(2, 1)
        return torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")


class Experts(nn.Module):
    """Three convolutions, weighted; ``first``: the likeliest alone counts."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.experts = nn.ModuleList(nn.Conv2d(DIM, DIM, k, padding=k // 2) for k in (1, 3, 5))
        self.router = nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x.mean((2, 3))).softmax(1)
        gate = gate * (gate == gate.amax(1, keepdim=True)) if self.first else gate
        made: Tensor = torch.stack([expert(x) for expert in self.experts], 1)
        return (gate[:, :, None, None, None] * made).sum(1)


class Windows(nn.Module):
    """Attention inside windows of 8 px, shifted by ``shift``."""

    def __init__(self, shift: int, heads: int = 2) -> None:
        super().__init__()
        self.shift, self.heads = shift, heads
        self.norm, self.enter, self.leave = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (2, 3)) if self.shift else x
        t = x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
        q, k, v = self.enter(self.norm(t)).reshape(-1, 64, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        share = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5).softmax(-1)
        t = self.leave((share @ v).transpose(1, 2).reshape(-1, 64, c))
        x = t.view(b, h // 8, w // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return torch.roll(x, (self.shift, self.shift), (2, 3)) if self.shift else x


class Enlarge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, DIM, 3, padding=1), nn.Conv2d(DIM, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        made: Tensor = smooth + 0.1 * F.pixel_shuffle(self.tail(F.leaky_relu(self.head(x), 0.2)), 4)
        return made


class Simple(nn.Module):
    """A block of NAFNet's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, DIM)
        self.wide, self.deep = nn.Conv2d(DIM, 2 * DIM, 1), nn.Conv2d(2 * DIM, 2 * DIM, 3, padding=1, groups=2 * DIM)
        self.share, self.leave = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.deep(self.wide(self.norm(x))).chunk(2, 1)
        f = a * b
        made: Tensor = self.leave(f * self.share(f.mean((2, 3), keepdim=True)))
        return made


class Transposed(nn.Module):
    """A block of Restormer's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.enter = ChannelAttention(DIM), nn.Conv2d(DIM, 4 * DIM, 1)
        self.deep, self.leave = nn.Conv2d(4 * DIM, 4 * DIM, 3, padding=1, groups=4 * DIM), nn.Conv2d(2 * DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        a, b = self.deep(self.enter(x)).chunk(2, 1)
        made: Tensor = x + self.leave(F.gelu(a) * b)
        return made


NETWORKS: dict[str, tuple[nn.Module, int]] = {
    "FFT of patches, as attention": (Body(PatchSpectralAttention(DIM, 8)), 3),
    "FFT of the picture, mixed": (Body(FourierUnit()), 3),
    "experts, weighted": (Body(Experts(False)), 3),
    "experts, the likeliest": (Body(Experts(True)), 3),
    "windows": (Body(Windows(0)), 3),
    "shifted windows": (Body(Windows(4)), 3),
    "enlarges 4 times": (Enlarge(), 3),
    "grey": (Body(nn.Conv2d(DIM, DIM, 3, padding=1), 1), 1),
    "NAFNet's kind": (Body(Simple()), 3),
    "Restormer's kind": (Body(Transposed()), 3),
}


def main(name: str) -> None:
    print("| network | | largest difference |\n|---|---|---:|")
    right = 0
    for number, (what, (network, channels)) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "network.onnx"
            try:
                export_module(network.eval(), f"1x{channels}x{SIDE}x{SIDE}", file, tile=SIDE, halo=8)
                (made,) = export_targets(open_source(file), Path(scratch) / "out", hosts_of([name]))
            except ClusirError as error:
                print(f"| {what} | refused: {str(error).removeprefix(f'--target {name}: ')} | |", flush=True)
                continue
        worst = max(found.agreement.max_abs for found in made.findings if found.agreement is not None)
        right += 1
        print(f"| {what} | right | {worst:.1e} |", flush=True)
    print(f"\n{right} of {len(NETWORKS)} run right.")


if __name__ == "__main__":
    main(*sys.argv[1:])
