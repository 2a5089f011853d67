"""Numbers that a trace has to know: NumPy's arrays of a size, values of weights, a count that follows the size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy import arange, hanning
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.trace.program import trace_module


class Runs(nn.Module):
    """A function of a picture as a network."""

    def __init__(self, habit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.habit = habit

    def forward(self, image: Tensor) -> Tensor:
        return self.habit(image)


def assert_any_size(network: nn.Module) -> None:
    """The trace answers pictures of other sizes as the network does."""
    traced = trace_module(network.eval(), torch.rand(2, 3, 75, 143))
    assert traced.dynamic_batch
    program = traced.original.module()
    for height, width in ((51, 82), (97, 64)):
        image = torch.rand(3, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(image)[0], network(image), atol=1e-6, rtol=1e-5)


def bell(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    rows, columns = (np.arange(h)[:, None] - h / 2) ** 2, (np.arange(w)[None] - w / 2) ** 2
    return x * torch.from_numpy(np.exp(-(rows / h + columns / w) / 20).astype(np.float32))


def disc(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y, z = np.mgrid[0:h, 0:w]
    far = np.sqrt((y - h // 2) ** 2 + (z - w // 2) ** 2)
    inside = torch.from_numpy((far < min(h, w) / 4).astype("float32"))
    rows, columns = np.meshgrid(np.linspace(-1, 1, h), np.linspace(0, 1, w, endpoint=False), indexing="ij")
    return x * inside + torch.tensor(np.stack([rows, columns]), dtype=torch.float32)[:1] * x


def by_imported_names(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    wave = torch.as_tensor(np.sin(arange(w) * 2 * np.pi / w), dtype=torch.float32)
    window = torch.from_numpy(np.outer(hanning(h), np.hanning(w))).float()
    return x * wave + window + torch.from_numpy(np.zeros((h, w), dtype=np.float32))


def array_of_sizes(x: Tensor) -> Tensor:
    size = np.array(x.shape[-2:])
    half = (size * 0.5).astype(int)
    high, wide = (np.ceil(np.array([x.shape[2], x.shape[3]], dtype=np.float32) / 8) * 8).astype(np.int32)
    padded = F.pad(x, (0, wide - x.shape[3], 0, high - x.shape[2]))
    small = F.interpolate(padded, size=tuple(half), mode="bilinear")
    return F.interpolate(small, x.shape[-2:], mode="bilinear") * (np.prod(size) / 1000)


def constants_stay(x: Tensor) -> Tensor:
    kernel = np.outer(np.hanning(5)[1:-1], np.ones(3)).astype(np.float32)
    kernel = torch.from_numpy(kernel / kernel.sum() * np.float32(2)).view(1, 1, 3, 3).repeat(3, 1, 1, 1)
    return F.conv2d(x, kernel, padding=1, groups=3) * np.sqrt(2) + float(np.maximum(1, x.shape[2]))


def brightest(x: Tensor) -> Tensor:
    """The mean of the brightest hundredth, as haze is told from the dark channel."""
    flat = x.flatten(2)
    count = max(int(flat.shape[-1] * 0.01), 1)
    _, where = torch.topk(flat.mean(1), count, dim=1)
    light = flat.gather(2, where[:, None].expand(-1, 3, -1)).mean(2)
    return x - light[..., None, None] + flat.topk(count, largest=False).values.mean()


def grids_as_older_code_writes_them(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    y, z = torch.meshgrid(torch.linspace(0, 2, h), torch.linspace(-1, 1, w))
    u, v = torch.meshgrid([torch.arange(w), torch.arange(h)], indexing="xy")
    return x * torch.stack([y * z, (u - v).float()]).mean(0) / 100


def parts_of_half_the_height(x: Tensor) -> Tensor:
    top, bottom, *rest = torch.split(x, x.shape[2] // 2, dim=2)
    wide = F.interpolate(x[..., ::2], scale_factor=(1, x.shape[3] / x[..., ::2].shape[3]), mode="bilinear")
    left, right = x.split([x.shape[3] // 2, x.shape[3] - x.shape[3] // 2], dim=3)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([bottom, top, *rest], 2) + wide + torch.cat([right, left], 3) * torch.cat([second, first], -1)


def sizes_read_back_from_tensors(x: Tensor) -> Tensor:
    rows, columns = torch.tensor(x.shape[-2:]).div(8).ceil().int().tolist()
    high = int(torch.ceil(torch.tensor(x.shape[2]) / 4)) * 4
    longest = torch.tensor([x.shape[3] / 2, 10.0]).max().item()
    small = F.interpolate(F.interpolate(x, (rows, columns), mode="bilinear"), x.shape[-2:])
    return small * (longest / 10) + F.pad(x, (0, 0, 0, high - x.shape[2]))[:, :, -x.shape[2] :]


def sizes_in_tensors_of_a_type(x: Tensor) -> Tensor:
    high, wide = torch.LongTensor([x.shape[2] // 2, x.shape[3]]).tolist()
    half = torch.FloatTensor(x.shape[2], 1).fill_(0.5)
    area = torch.Tensor([x.shape[2], x.shape[3]]).prod().item()
    same = x if isinstance(x, torch.Tensor) else None
    assert same is not None
    return same[:, :, -high:].mean() * half + x / area * wide + x / (x.new_tensor([x.shape[3]]) - 1)


def levels_of_a_pyramid(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    padded = F.pad(x, (0, 2 ** math.ceil(math.log2(w)) - w, 0, 2 ** math.ceil(math.log2(h)) - h))
    levels = int(math.log2(min(h, w))) + math.ceil(math.log(max(h, w), 2))
    return padded[..., ::2, ::2].mean() * levels + x * (math.log(h * w) / math.log(4096)) + x / np.log2(w)


@functools.lru_cache(maxsize=4)
def ramp(h: int, w: int) -> Tensor:
    return torch.linspace(-1, 1, h)[:, None] * torch.linspace(0, 1, w)


WAVES: dict[tuple[int, ...], Tensor] = {}


def kept_by_size(x: Tensor) -> Tensor:
    size = tuple(x.shape[-2:])
    if size not in WAVES:
        WAVES[size] = torch.sin(ramp(*size) * 9)
    return x * WAVES[size] + ramp(x.shape[2], x.shape[3]) + ramp(x.shape[3], x.shape[2]).T


HABITS = (
    bell,
    disc,
    by_imported_names,
    array_of_sizes,
    constants_stay,
    brightest,
    grids_as_older_code_writes_them,
    parts_of_half_the_height,
    sizes_read_back_from_tensors,
    sizes_in_tensors_of_a_type,
    levels_of_a_pyramid,
    kept_by_size,
)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.__name__)
def test_numbers_of_a_size_stay_sizes(habit: Callable[[Tensor], Tensor]) -> None:
    try:
        assert_any_size(Runs(habit))
    finally:  # an export puts both back before each run
        WAVES.clear()
        ramp.cache_clear()


def test_a_power_of_two_has_its_whole_logarithm() -> None:
    def levels(x: Tensor) -> Tensor:
        return x[:, :, :1, :1] * 0 + math.ceil(math.log2(x.shape[2])) + 100 * int(math.log2(x.shape[3]))

    program = trace_module(Runs(levels).eval(), torch.rand(2, 3, 75, 143)).original.module()
    for n in (3, 8, 31, 32, 33, 1024, 16384):
        assert program(torch.zeros(2, 3, n, 9))[0].unique().tolist() == [math.ceil(math.log2(n)) + 300]
        assert program(torch.zeros(2, 3, 9, n))[0].unique().tolist() == [4 + 100 * int(math.log2(n))]


def test_a_logarithm_of_another_base_is_counted_where_python_has_it_exactly() -> None:
    def levels(x: Tensor) -> Tensor:
        return x[:, :, :1, :1] * 0 + int(math.log(x.shape[2], 4)) + 100 * math.ceil(math.log(x.shape[3] // 2, 16))

    program = trace_module(Runs(levels).eval(), torch.rand(2, 3, 75, 142)).original.module()
    for n in (15, 16, 17, 63, 64, 65, 256):
        assert program(torch.zeros(2, 3, n, 9))[0].unique().tolist() == [int(math.log(n, 4)) + 100]
        assert program(torch.zeros(2, 3, 9, 2 * n))[0].unique().tolist() == [1 + 100 * math.ceil(math.log(n, 16))]


@pytest.mark.parametrize("known", [{64, 128}, {64: 2.0}, {(64, 64): 2.0}], ids=["set", "number", "pair"])
def test_a_size_is_not_looked_up_among_numbers(known: Any) -> None:
    def chooses(x: Tensor) -> Tensor:
        key = (x.shape[2], x.shape[3]) if (64, 64) in known else x.shape[2]
        return x * 2 if key in known else x

    with pytest.raises(UnsupportedModelError, match=r"test_values\.py:\d+.*unhashable"):
        trace_module(Runs(chooses).eval(), torch.rand(2, 3, 75, 143))


def test_a_function_that_is_not_known_is_named_with_its_line() -> None:
    def packed(x: Tensor) -> Tensor:
        return x * float(np.packbits(np.arange(x.shape[-1]) > 3)[0])

    with pytest.raises(UnsupportedModelError, match=r"test_values\.py:\d+.*numpy\.packbits of an array as long as"):
        trace_module(Runs(packed).eval(), torch.rand(2, 3, 75, 143))


class ReadsWeights(nn.Module):
    """Values of weights, buffers and what is made of them alone, read as Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.power, self.share = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor([0.2, -0.4, 0.9]))
        self.register_buffer("turns", torch.tensor(2))
        self.kept = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.sigmoid(self.power).item()
        for _ in range(int(self.turns)):
            x = self.mix(x)
        x = x.abs() ** self.kept if self.power > 0 else x
        first, *_ = self.share.softmax(0).tolist()
        if self.share.abs().max() < 1 and not bool(self.share.sum() > 9):
            x = x * first
        return x + float(self.mix.weight.mean())


def test_what_depends_on_weights_alone_is_known() -> None:
    assert_any_size(ReadsWeights())


def test_what_depends_on_the_picture_is_not() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.limit = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.mean() > self.limit else x

    with pytest.raises(UnsupportedModelError, match=r"test_values\.py:\d+.*control flow depends on input values"):
        trace_module(Branches().eval(), torch.rand(2, 3, 75, 143))


def test_a_number_that_was_written_over_is_not_read_as_it_was() -> None:
    def scales(x: Tensor) -> Tensor:
        sizes = torch.tensor([x.shape[2], x.shape[3]])
        sizes[0] = x.mean() * 40
        return x * sizes.sum().item()

    with pytest.raises(UnsupportedModelError, match=r"test_values\.py:\d+"):
        trace_module(Runs(scales).eval(), torch.rand(2, 3, 75, 143))
