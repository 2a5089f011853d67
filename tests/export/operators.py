"""Operators of restorers' code, a few lines each: functions from a map BxCxHxW to one like it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -- samples between pixels --------------------------------------------------------------------------------------------


def flow(f: Tensor) -> Tensor:
    """A grid BxHxWx2 that leaves the picture on all sides."""
    h, w = f.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1.4, 1.3, h), torch.linspace(-1.2, 1.5, w), indexing="ij")
    return torch.stack([x, y], -1) + 0.3 * torch.tanh(f[:, :2]).permute(0, 2, 3, 1)


def grids() -> list[tuple[str, bool]]:
    return [(padding, corners) for padding in ("zeros", "border", "reflection") for corners in (False, True)]


def sampled_bilinear(f: Tensor) -> Tensor:
    return sum(F.grid_sample(f, flow(f), "bilinear", p, c) * k for k, (p, c) in enumerate(grids(), 1))


def sampled_nearest(f: Tensor) -> Tensor:
    return sum(F.grid_sample(f, flow(f), "nearest", p, c) * k for k, (p, c) in enumerate(grids(), 1))


def sampled_bicubic(f: Tensor) -> Tensor:
    """Each padding and each way to count corners; reflection, which depends on it, in both."""
    kinds = [("zeros", True), ("border", False), ("reflection", False), ("reflection", True)]
    return sum(F.grid_sample(f, flow(f), "bicubic", p, c) * k for k, (p, c) in enumerate(kinds, 1))


def table(size: int = 5) -> Tensor:
    """A colour table 3xDxHxW, far from the identity."""
    x = torch.linspace(-1, 1, size)
    r, g, b = torch.meshgrid(x, x, x, indexing="ij")
    return torch.stack([torch.sin(3 * r) + g * b, b**2 - r, torch.cos(2 * g) * r])


def colour_table(f: Tensor) -> Tensor:
    lut = table().expand(f.shape[0], -1, -1, -1, -1)
    return F.grid_sample(lut, f.permute(0, 2, 3, 1)[:, None], "bilinear", "border", True)[:, :, 0]


def sampled_in_space(f: Tensor) -> Tensor:
    lut = table(4).expand(f.shape[0], -1, -1, -1, -1)
    where = 1.3 * f.permute(0, 2, 3, 1)[:, None]
    total = torch.zeros_like(f)
    for k, (mode, padding, corners) in enumerate(SPACES, 1):
        total = total + k * F.grid_sample(lut, where, mode, padding, corners)[:, :, 0]
    return total


SPACES = (
    ("bilinear", "zeros", False),
    ("bilinear", "reflection", True),
    ("nearest", "border", True),
    ("nearest", "reflection", False),
)


def deformed_by_grid(f: Tensor) -> Tensor:
    """A modulated deformable 3x3 convolution, tap by tap through grid_sample."""
    _, c, h, w = f.shape
    offset = 2 * torch.sin(F.conv2d(f, torch.linspace(-1, 1, 18 * c).view(18, c, 1, 1)))
    mask = torch.sigmoid(F.conv2d(f, torch.linspace(1, -1, 9 * c).view(9, c, 1, 1)))
    weight = torch.linspace(-0.5, 0.5, 9 * c * c).view(c, c, 9)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    out = torch.zeros_like(f)
    for k in range(9):
        py, px = y + k // 3 - 1 + offset[:, 2 * k], x + k % 3 - 1 + offset[:, 2 * k + 1]
        grid = torch.stack([2 * px / max(w - 1, 1) - 1, 2 * py / max(h - 1, 1) - 1], -1)
        tap = F.grid_sample(f, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        out = out + torch.einsum("oc,bchw->bohw", weight[:, :, k], tap * mask[:, k : k + 1])
    return out


def deformed_by_gather(f: Tensor) -> Tensor:
    """The same kind with bilinear samples gathered from the padded map, as plain PyTorch versions have it."""
    b, c, h, w = f.shape
    offset = 1.5 * torch.tanh(F.conv2d(f, torch.linspace(-1, 1, 18 * c).view(18, c, 1, 1)))
    padded = F.pad(f, (1, 1, 1, 1))
    ph, pw = padded.shape[2:]
    base_y, base_x = torch.meshgrid(torch.arange(1, h + 1), torch.arange(1, w + 1), indexing="ij")
    tap_y, tap_x = torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing="ij")
    p = torch.cat([base_y[None] + tap_y.reshape(9, 1, 1), base_x[None] + tap_x.reshape(9, 1, 1)])[None] + offset
    p = p.permute(0, 2, 3, 1)  # B, H, W, 18
    top_left = p.detach().floor()
    bottom_right = top_left + 1

    def inside(q: Tensor) -> Tensor:
        return torch.cat([torch.clamp(q[..., :9], 0, ph - 1), torch.clamp(q[..., 9:], 0, pw - 1)], -1).long()

    q_lt, q_rb = inside(top_left), inside(bottom_right)
    q_lb = torch.cat([q_lt[..., :9], q_rb[..., 9:]], -1)
    q_rt = torch.cat([q_rb[..., :9], q_lt[..., 9:]], -1)
    p = torch.cat([torch.clamp(p[..., :9], 0, ph - 1), torch.clamp(p[..., 9:], 0, pw - 1)], -1)

    def values(q: Tensor) -> Tensor:
        index = (q[..., :9] * pw + q[..., 9:]).unsqueeze(1).expand(-1, c, -1, -1, -1).contiguous().view(b, c, -1)
        return padded.contiguous().view(b, c, -1).gather(-1, index).contiguous().view(b, c, h, w, 9)

    def near(q: Tensor) -> Tensor:
        y, x = 1 - (q[..., :9] - p[..., :9]).abs(), 1 - (q[..., 9:] - p[..., 9:]).abs()
        return (y * x).unsqueeze(1)

    samples = sum(near(q) * values(q) for q in (q_lt, q_rb, q_lb, q_rt))
    weight = torch.linspace(-0.5, 0.5, 9 * c * c).view(c, c, 9)
    return torch.einsum("ock,bchwk->bohw", weight, samples)


# -- order and counting ------------------------------------------------------------------------------------------------


def steps(f: Tensor) -> Tensor:
    """Few different values, so that most are ties."""
    return torch.round(2 * f) / 2


def sorted_with_ties(f: Tensor) -> Tensor:
    g = steps(f).flatten(2)
    place = torch.arange(float(g.shape[-1])) / g.shape[-1]
    up = torch.argsort(g, dim=-1, stable=True)
    values, down = torch.sort(g, dim=-1, descending=True, stable=True)
    back = torch.empty_like(up).scatter_(-1, up, torch.arange(g.shape[-1]).expand_as(up))
    return (place[up] + values + 2 * place[down] + 3 * place[back]).view(f.shape)


def best_with_ties(f: Tensor) -> Tensor:
    g = steps(f).flatten(2)
    first, last = g.argmax(-1, keepdim=True), (-g).argmin(-1, keepdim=True)
    values, where = torch.max(g, -1, keepdim=True)
    top = torch.topk(g, 5, dim=-1).values.sum(-1, keepdim=True)
    return f + ((first + last + where) / g.shape[-1] + values + top)[..., None]


def gathered(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    row = (torch.sigmoid(f) * (h - 1)).long()
    return f.gather(2, row) + f.index_select(3, torch.arange(w - 1, -1, -1)) + torch.take_along_dim(f, row // 2, 2)


def histogram(f: Tensor) -> Tensor:
    """Counts in fixed bins, of the brightness of all pictures in one."""
    g = torch.sigmoid(f[:1])
    counts = torch.histc(g, bins=8, min=0.1, max=0.9) / g[0].numel()
    return f + (counts * torch.arange(8.0)).sum() + torch.histc(g[:, 0], 4, 0, 1)[1] / g[0, 0].numel()


def histogram_by_index(f: Tensor) -> Tensor:
    g = torch.sigmoid(f).flatten(2)
    index = (g * 8).long().clamp(0, 7)
    hot = F.one_hot(index, 8).float().mean(2)
    added = torch.zeros(f.shape[0], f.shape[1], 8).scatter_add_(2, index, torch.ones_like(g)) / g.shape[-1]
    mapped = torch.cumsum(hot, -1).gather(2, index)
    cut = torch.bucketize(g, torch.tensor([0.2, 0.5, 0.8])).float() + torch.searchsorted(torch.tensor([0.3, 0.6]), g)
    return (mapped + cut).view(f.shape) + (added * torch.arange(8.0)).sum(-1)[..., None, None]


# -- windows, norms, sums ----------------------------------------------------------------------------------------------


def unfolded(f: Tensor) -> Tensor:
    b, c, h, w = f.shape
    columns = F.unfold(f, 3, padding=1)
    weight = torch.softmax(columns.view(b, c, 9, h * w), 2)
    near = (columns.view(b, c, 9, h * w) * weight).sum(2).view(b, c, h, w)
    far = F.unfold(f, (3, 5), dilation=2, padding=(2, 4)).view(b, c, 15, h, w)[:, :, ::4].mean(2)
    return near + far


def folded(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    columns = F.unfold(f, 4, stride=2, padding=1)
    summed = F.fold(columns * 0.5, (h, w), 4, stride=2, padding=1)
    count = F.fold(F.unfold(torch.ones_like(f), 3, padding=1), f.shape[-2:], 3, padding=1)
    return summed + F.fold(F.unfold(f, 3, padding=1), (h, w), 3, padding=1) / count


def tensor_unfold(f: Tensor) -> Tensor:
    padded = F.pad(f, (1, 1, 2, 2), mode="reflect")
    return padded.unfold(2, 5, 1).unfold(3, 3, 1).amax((-1, -2)) + padded.unfold(2, 5, 1).median(-1).values[..., 1:-1]


def norms(f: Tensor) -> Tensor:
    rows = f.permute(0, 2, 3, 1)
    rms = F.rms_norm(rows, (3,), torch.tensor([0.5, 1.0, 2.0])) + F.rms_norm(rows, (3,), eps=1e-6)
    group = F.group_norm(f, 3, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])) + F.group_norm(f, 1)
    instance = F.instance_norm(f, weight=torch.tensor([1.0, 2.0, 3.0])) + nn.InstanceNorm2d(3)(f)
    return rms.permute(0, 3, 1, 2) + group + instance + F.layer_norm(f, f.shape[-1:]) + F.normalize(f, dim=1)


def sums_of_products(f: Tensor) -> Tensor:
    a, b = torch.linspace(-1, 1, 12).view(3, 4), torch.linspace(1, -1, 12).view(4, 3)
    three = torch.einsum("bchw,cd,de->behw", f, a, b)
    four = torch.einsum("bchw,cd,bchw,de->behw", f, a, torch.sigmoid(f), b)
    rows = torch.einsum("bchw,bchv,bcqv->bcqw", f, f, f) / (f.shape[-1] * f.shape[-2])
    dots = torch.einsum("...hw,...hw,...w->...h", f, f, f[:, :, 0])[..., None]
    diagonal = torch.einsum("cc,bchw->bhw", a @ b, f)[:, None]
    return three + four + rows + dots / f.shape[-1] + diagonal


# -- transforms --------------------------------------------------------------------------------------------------------


def cosine_matrix(n: int) -> Tensor:
    k = torch.arange(n)
    matrix = torch.cos(math.pi / n * k[:, None] * (k[None] + 0.5)) * math.sqrt(2 / n)
    return torch.where(k[:, None] == 0, matrix / math.sqrt(2), matrix)


def cosines_by_matrix(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    rows, columns = cosine_matrix(h), cosine_matrix(w)
    spectrum = rows @ f @ columns.T
    return rows.T @ (spectrum * torch.exp(-torch.arange(w) / w)) @ columns


def cosines_by_fft(f: Tensor) -> Tensor:
    """DCT-II and its inverse by an FFT of the reordered row, as most packages have it."""
    n = f.shape[-1]
    v = torch.cat([f[..., ::2], f[..., 1::2].flip(-1)], -1)
    k = -torch.arange(n, dtype=f.dtype) * math.pi / (2 * n)
    spectrum = torch.fft.fft(v)
    dct = spectrum.real * torch.cos(k) - spectrum.imag * torch.sin(k)
    dct = dct * torch.exp(-torch.arange(n) / n)
    re, im = dct, torch.cat([dct[..., :1] * 0, -dct.flip(-1)[..., :-1]], -1)
    c, s = torch.cos(-k), torch.sin(-k)
    back = torch.fft.irfft(torch.view_as_complex(torch.stack([re * c - im * s, re * s + im * c], -1)), n=n)
    out = torch.zeros_like(back)
    out[..., ::2] += back[..., : n - n // 2]
    out[..., 1::2] += back.flip(-1)[..., : n // 2]
    return out


def blocks_of_cosines(f: Tensor) -> Tensor:
    """8x8 blocks as JPEG has them, the picture padded to whole ones."""
    b, c, h, w = f.shape
    padded = F.pad(f, (0, -w % 8, 0, -h % 8), mode="replicate")
    ph, pw = padded.shape[-2:]
    blocks = padded.view(b, c, ph // 8, 8, pw // 8, 8).permute(0, 1, 2, 4, 3, 5)
    m = cosine_matrix(8)
    spectrum = torch.round(m @ blocks @ m.T * 4 + 0.011) / 4
    back = (m.T @ spectrum @ m).permute(0, 1, 2, 4, 3, 5).reshape(b, c, ph, pw)
    return back[:, :, :h, :w]


def wavelet_by_slices(f: Tensor) -> Tensor:
    h, w = f.shape[-2:]
    x = F.pad(f, (0, (2 - w % 2) % 2, 0, (2 - h % 2) % 2), mode="reflect")
    top, bottom = x[:, :, 0::2] / 2, x[:, :, 1::2] / 2
    a, b, c, d = top[..., 0::2], bottom[..., 0::2], top[..., 1::2], bottom[..., 1::2]
    ll, hl, lh, hh = a + b + c + d, -a - b + c + d, -a + b - c + d, a - b - c + d
    hl, lh, hh = (torch.tanh(band) for band in (hl, lh, hh))
    out = torch.zeros(x.shape)
    out[:, :, 0::2, 0::2] = (ll - hl - lh + hh) / 2
    out[:, :, 1::2, 0::2] = (ll - hl + lh - hh) / 2
    out[:, :, 0::2, 1::2] = (ll + hl - lh - hh) / 2
    out[:, :, 1::2, 1::2] = (ll + hl + lh + hh) / 2
    return out[:, :, :h, :w]


def wavelet_by_convolution(f: Tensor) -> Tensor:
    """Daubechies 2, circular, channel by channel, and back by the transposed convolution."""
    _, c, h, w = f.shape
    low = torch.tensor([0.4829629131, 0.8365163037, 0.2241438680, -0.1294095226])
    high = low.flip(0) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    filters = torch.stack([p[:, None] * q[None] for p in (low, high) for q in (low, high)])[:, None]
    x = F.pad(f, (0, w % 2, 0, h % 2), mode="replicate")
    bands = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), filters.repeat(c, 1, 1, 1), stride=2, groups=c)
    bands = torch.where(bands.abs() < 0.3, 0.5 * bands, bands)
    back = F.conv_transpose2d(bands, filters.repeat(c, 1, 1, 1), stride=2, groups=c)
    return back[:, :, 1 : 1 + h, 1 : 1 + w]


def phases(f: Tensor) -> Tensor:
    """Chains of complex functions: amplitude and phase apart, chosen, turned and put together."""
    h, w = f.shape[-2:]
    z = torch.fft.rfft2(f)
    amplitude, phase = z.abs(), z.angle()
    turned = torch.exp(1j * 0.5 * phase) * amplitude.log1p()
    strong = torch.where(amplitude > amplitude.mean((2, 3), keepdim=True), z, turned)
    mixed = torch.polar(amplitude.sqrt(), torch.angle(strong.conj() * z)) + torch.exp(
        -z / (1 + amplitude.amax((1, 2, 3), keepdim=True))
    )
    return torch.fft.irfft2(mixed * strong.abs(), s=(h, w)) / 10


# -- kernels that the picture decides ----------------------------------------------------------------------------------


def low_and_high(f: Tensor) -> Tensor:
    """A kernel of each group of channels, made of their means, splits a map into low and high frequencies, of which an
    attention between the two then takes its share; the kernel's taps are those of an unfolded map."""
    (n, c, h, w), taps, groups = f.shape, 9, 3
    kernel = F.conv2d(F.adaptive_avg_pool2d(f, (1, 1)), torch.linspace(-2, 2, groups * taps * c).view(-1, c, 1, 1))
    one, made, p, q = kernel.shape
    kernel = kernel.reshape(one, made // taps, taps, p * q).unsqueeze(2).softmax(dim=-2)
    patches = F.unfold(nn.ReflectionPad2d(1)(f), kernel_size=3).reshape(n, groups, c // groups, taps, h * w)
    low = torch.sum(patches * kernel, dim=3).reshape(n, c, h, w)
    high = f - low
    both = torch.cat([F.adaptive_avg_pool2d(low, 1) * 3, F.adaptive_avg_pool2d(high, 1) - 1], dim=1).softmax(dim=1)
    share_low, share_high = torch.chunk(both, 2, dim=1)
    return F.conv2d(low * share_low + high * share_high, torch.linspace(-1, 1, c * c).view(c, c, 1, 1))


def mixed_kernels(f: Tensor) -> Tensor:
    """Every pixel mixes its own kernel and bias out of four."""
    (n, c, h, w), count = f.shape, 4
    share = F.conv2d(f, torch.linspace(-1, 1, count * c).view(count, c, 1, 1)).softmax(1)
    share = share.reshape(n, count, h * w).transpose(-2, -1)  # B, HW, 4
    kernels = share @ torch.sin(torch.arange(count * c * 9.0)).view(1, count, c * 9)
    kernels = kernels.reshape(n, h * w, c, -1)
    patches = F.unfold(f, kernel_size=3, padding=1).reshape(n, c, 9, h * w).permute(0, 3, 1, 2)
    out = (kernels.unsqueeze(-2) @ patches.unsqueeze(-1)).squeeze(-1).reshape(n, h * w, c)
    out = out + share @ torch.linspace(-1, 1, count * c).view(1, count, c)
    return out.transpose(-1, -2).reshape(n, c, h, w)


def offsets_of_groups(f: Tensor) -> Tensor:
    """Groups of channels sampled at places of their own, the samples weighted by a softmax; the channels stand last."""
    groups, taps, pad = 3, 9, 1
    x = f.permute(0, 2, 3, 1)
    n, rows, columns, c = x.shape
    offset = torch.tanh(x @ torch.linspace(-1, 1, c * groups * taps * 2).view(c, -1)) * 2
    share = (x @ torch.linspace(1, -1, c * groups * taps).view(c, -1)).reshape(n, rows, columns, groups, taps)
    share = F.softmax(share, -1).reshape(n, rows, columns, groups * taps)
    x = F.pad(x, [0, 0, pad, pad, pad, pad])
    _, high, wide, _ = x.shape
    y, z = torch.meshgrid(
        torch.linspace(1.5, 1.5 + (rows - 1), rows, dtype=torch.float32) / high,
        torch.linspace(1.5, 1.5 + (columns - 1), columns, dtype=torch.float32) / wide,
        indexing="ij",
    )
    places = torch.stack((z, y), -1).reshape(1, rows, columns, 1, 2)
    around = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 3), indexing="ij"), -1)
    around = around.reshape(1, 1, 1, taps, 2).repeat(1, 1, 1, groups, 1) / torch.tensor([wide, high])
    norm = torch.tensor([wide, high]).reshape(1, 1, 1, 2).repeat(1, 1, 1, groups * taps)
    where = (places + around).repeat(n, 1, 1, 1, 1).flatten(3, 4) + offset / norm
    grid = (2 * where - 1).view(n, rows * columns, groups, taps, 2).transpose(1, 2).flatten(0, 1)
    maps = x.view(n, high * wide, c).transpose(1, 2).reshape(n * groups, c // groups, high, wide)
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    share = share.view(n, rows * columns, groups, taps).transpose(1, 2).reshape(n * groups, 1, rows * columns, taps)
    out = (samples * share).sum(-1).view(n, c, rows * columns)
    return out.transpose(1, 2).reshape(n, rows, columns, c).permute(0, 3, 1, 2)


def short_time(f: Tensor) -> Tensor:
    b, c, h, w = f.shape
    spectra = torch.stft(f.reshape(b * c * h, w), 8, 4, window=torch.hann_window(8), return_complex=True)
    return torch.istft(spectra * spectra.abs(), 8, 4, window=torch.hann_window(8), length=w).view(f.shape)


def products_so_far(f: Tensor) -> Tensor:
    g = torch.sigmoid(f + 2)
    return f * torch.cumprod(g, -1) + g.flip(2).cumprod(dim=2).flip(2)


def none_of_the_largest(f: Tensor) -> Tensor:
    values, places = f.flatten(2).topk(int(0.1 * f.shape[1]))
    return f + values.sum(-1)[..., None, None] + places.sum()


OPERATORS = (
    low_and_high,
    mixed_kernels,
    offsets_of_groups,
    sampled_bilinear,
    sampled_nearest,
    sampled_bicubic,
    colour_table,
    sampled_in_space,
    deformed_by_grid,
    deformed_by_gather,
    sorted_with_ties,
    best_with_ties,
    gathered,
    histogram,
    histogram_by_index,
    unfolded,
    folded,
    tensor_unfold,
    short_time,
    products_so_far,
    none_of_the_largest,
    norms,
    sums_of_products,
    cosines_by_matrix,
    cosines_by_fft,
    blocks_of_cosines,
    wavelet_by_slices,
    wavelet_by_convolution,
    phases,
)
