"""Which pictures a brought file is compared on, and what the module itself answers to each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from clusir.calibration.planes import colours_of, maps_for
from clusir.export.experts.registry import dense_blocks
from clusir.export.subjects.checks import reference
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.effort import Effort
from clusir.export.validate.memory import TORCH, Memory
from clusir.runtimes.runners.base import Array

__all__ = ["Case", "ModuleCheck", "cases_of", "expected_of", "photo_of", "plain_pictures", "probes"]

_LEAST_SIZES = 2
_PICTURES, _FEW = 8, 2  # different pictures at the first size, and at the others


@dataclass(frozen=True)
class ModuleCheck:
    """What a file is compared with, and on what.

    ``dense``: the user's module with its described blocks made dense (the module itself where there is none);
    ``sizes``: heights and widths in pixels, the first of them with eight different pictures; ``gates``: the tensors of
    the graph that hold the gates of ``dense``'s blocks, one for each call, through which each expert is forced;
    ``batch``: what the graph is fixed to, None where it is free; ``backends``: the runtimes to ask; ``photo_px``:
    sides of a photo, the first of them as large as tiles will be, since what is summed over so many pixels is less
    exact: one photo, of the first side that there is time and memory for; ``least``: those of the sizes that are asked
    about whatever time it takes; ``effort``: the time for the rest; ``memory``: what pictures took of it, and so which
    fit.
    """

    user: nn.Module
    dense: nn.Module
    sizes: Sequence[tuple[int, int]]
    gates: Sequence[str] = ()
    channels: int = 3
    batch: int | None = None
    backends: Sequence[str] = ("ort",)
    photo_px: Sequence[int] = ()
    least: Sequence[tuple[int, int]] = ()
    effort: Effort = field(default_factory=Effort)
    memory: Memory = field(default_factory=Memory)


_FORMS: tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda noise, tint, y, x: noise,
    lambda noise, tint, y, x: 0.08 * noise,
    lambda noise, tint, y, x: 1 - 0.08 * noise,
    lambda noise, tint, y, x: x * tint + y * (1 - tint),
    lambda noise, tint, y, x: tint + 0.02 * noise,
    lambda noise, tint, y, x: ((torch.floor(x * 9) + torch.floor(y * 7)) % 2) * tint + 0.1 * noise,
    lambda noise, tint, y, x: 0.5 + 0.5 * torch.sin(20 * x * tint + 14 * y) * tint,
    lambda noise, tint, y, x: tint * torch.exp(-((x - 0.5) ** 2 + (y - tint) ** 2) * 12),
)


def probes(count: int, channels: int, height: int, width: int) -> Tensor:
    """``count`` different pictures (float32, BxCxHxW in 0..1): noise, ramps, dark, bright, blobs, edges, flat colours.

    They differ in brightness, contrast, colour and frequency, which is what routers look at. Always the same ones. Of
    more ``channels`` than a picture has the last are maps.
    """
    generator, colours = torch.Generator().manual_seed(11), colours_of(channels)
    y = torch.linspace(0, 1, height).view(1, height, 1)
    x = torch.linspace(0, 1, width).view(1, 1, width)
    pictures = []
    for index in range(count):
        noise = torch.rand(colours, height, width, generator=generator)
        tint = torch.rand(colours, 1, 1, generator=generator)
        made = _FORMS[index % len(_FORMS)](noise, tint, y, x).expand(colours, height, width).clamp(0, 1).float()
        pictures.append(torch.cat([made, torch.from_numpy(maps_for(channels, height, width, index))]))
    return torch.stack(pictures)


def plain_pictures(channels: int, height: int, width: int) -> Tensor:
    """A black, a white and a one-coloured picture (3xCxHxW): where a network divides by a maximum or a variance."""
    colour = torch.linspace(0.2, 0.6, channels).view(1, channels, 1, 1).expand(1, channels, height, width)
    return torch.cat([torch.zeros_like(colour), torch.ones_like(colour), colour])


@dataclass(frozen=True)
class Case:
    """Pictures of one size, which of them are given together, and what is expected of each; ``plain``: black, white
    and of one colour; ``smaller``: sides of the photo that may take their place."""

    label: str
    pictures: Tensor
    groups: Sequence[tuple[int, int]]
    expected: Mapping[str, Array]
    plain: bool = False
    smaller: Sequence[int] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pictures.shape[2], self.pictures.shape[3]


def cases_of(given: ModuleCheck, names: Sequence[str], progress: Callable[[str], None]) -> list[Case]:
    """What is asked at every size, and of a photo as large as a tile; ``names``: the outputs of the file.

    The least, whatever it takes: at the first two sizes, the smallest one and those of ``given.least``, two pictures
    alone and together, and black, white and one-coloured ones. Then, as far as ``given.effort`` lasts: more pictures
    of the first size, two of the others, the photo, and sizes of twice the first one's pixels or more, of which a
    single picture is enough.
    """
    sizes = list(dict.fromkeys((height, width) for height, width in given.sizes))
    smallest = min(sizes, key=math.prod, default=(0, 0))
    least = [
        size for number, size in enumerate(sizes) if number < _LEAST_SIZES or size == smallest or size in given.least
    ]
    large = [size for size in sizes if math.prod(size) > 2 * math.prod(sizes[0])]
    others = [size for size in sizes if size not in least and size not in large]
    asking = _Asking(given, names, progress)
    for size in least:
        asking.pictures(size, 0, _FEW - (size in large), least=True)
        asking.plain(size, least=True)
    for size in sizes[:1]:
        asking.pictures(size, _FEW, _PICTURES)
    compared = [size for size in others if asking.pictures(size, 0, _FEW)]
    if (given.batch or 1) == 1:
        asking.photo(sizes)
    for size in compared:
        asking.plain(size)
    for size in large:
        if size not in least and asking.pictures(size, 0, _FEW - 1):
            asking.plain(size)
    return asking.cases


class _Asking:
    """Asks the model, in the order of the calls, as far as there is time. ``cases``: what came of it."""

    def __init__(self, given: ModuleCheck, names: Sequence[str], progress: Callable[[str], None]) -> None:
        self._given, self._names, self._progress = given, names, progress
        self.cases: list[Case] = []

    def pictures(self, size: tuple[int, int], start: int, stop: int, least: bool = False) -> bool:
        """The pictures ``start`` to ``stop``, alone and together; whether there was time for them."""
        batch, label = self._given.batch, f"{size[0]}x{size[1]}{' more' if start else ''} pictures"
        start, stop = _whole(start, batch), _whole(stop, batch)
        if start == stop:
            return True  # they were in the batches of the first
        made = probes(stop, self._given.channels, *size)[start:]
        groups = _groups(len(made), batch)
        return self._affords(label, made, groups, least) and self._add(label, made, groups)

    def plain(self, size: tuple[int, int], least: bool = False) -> None:
        """Black, white and one-coloured, but for those to which the model's own answer is not finite."""
        given, label = self._given, f"{size[0]}x{size[1]} black, white and one-coloured"
        plain = plain_pictures(given.channels, *size)
        if not self._affords(label, plain, [(0, len(plain))], least):
            return
        self._progress(f"asking the model itself: {label}")
        with given.effort.timed(math.prod(size), len(plain)), given.memory.watched(TORCH, size):
            answers = reference(given.user, plain)
        finite = torch.isfinite(answers).flatten(1).all(1)
        if finite.any():
            plain, answers = (_whole_batches(t[finite], given.batch) for t in (plain, answers))
            groups = [(0, len(plain))] if given.batch is None else _groups(len(plain), given.batch)
            expected = expected_of(given, plain, self._names, answers)
            self.cases.append(Case(label, plain, groups, expected, plain=True))

    def photo(self, known: Sequence[tuple[int, int]]) -> None:
        """A photo of the first of the sides that there is time for, or of the next ones that fit into memory."""
        given, asked = self._given, 2 if "gate" in self._names else 1
        for number, side in enumerate(given.photo_px):
            if (side, side) in known:
                return
            # Where nobody knows yet that it fits, smaller ones are asked for first.
            sides = given.photo_px[number:] if not given.memory.fits(TORCH, (side, side)) else [side]
            runs = (asked + len(given.backends)) * sum(px * px for px in sides) / side**2
            if given.effort.affords(_photo_label(side), side * side, runs):
                ways = given.memory.ways(TORCH, [(px, px) for px in given.photo_px[number:]])
                self.cases += [self._photo(height) for height, _ in ways][-1:]
                return

    def _photo(self, side: int) -> Case:
        self._progress(f"asking the model itself: {_photo_label(side)}")
        with self._given.effort.timed(side * side, 1):
            return photo_of(self._given, self._names, side)

    def _affords(self, label: str, pictures: Tensor, groups: Sequence[tuple[int, int]], least: bool) -> bool:
        given = self._given
        asked = len(pictures) * (2 if "gate" in self._names else 1)
        runs = asked + len(given.backends) * sum(stop - start for start, stop in groups)
        height, width = pictures.shape[2:]
        if not given.memory.fits(TORCH, (height, width)):
            given.memory.tell(TORCH, (height, width))
            return False
        return least or given.effort.affords(label, height * width, runs)

    def _add(self, label: str, pictures: Tensor, groups: Sequence[tuple[int, int]]) -> bool:
        given, (height, width) = self._given, pictures.shape[2:]
        self._progress(f"asking the model itself: {label}")
        with given.effort.timed(height * width, len(pictures)), given.memory.watched(TORCH, (height, width)):
            answers = reference(given.user, pictures)
        self.cases.append(Case(label, pictures, groups, expected_of(given, pictures, self._names, answers)))
        return True


def photo_of(given: ModuleCheck, names: Sequence[str], side: int) -> Case:
    """A photo of ``side`` px, and what the module makes of it; ``names``: the outputs of the file."""
    photo = torch.from_numpy(natural_picture(side, side, given.channels))
    with given.memory.watched(TORCH, (side, side)):
        expected = expected_of(given, photo, names)
    return Case(_photo_label(side), photo, [(0, 1)], expected, smaller=[px for px in given.photo_px if px < side])


def _photo_label(side: int) -> str:
    return f"{side}x{side}, photo"


def expected_of(
    given: ModuleCheck, pictures: Tensor, names: Sequence[str], answers: Tensor | None = None
) -> dict[str, Array]:
    """Every output by name; ``answers``: what the model is known to make of the pictures."""
    restored = reference(given.user, pictures) if answers is None else answers
    expected: dict[str, Array] = {"restored": restored.numpy()}
    if "gate" in names:
        expected["gate"] = _joined(_gates_of(given.dense, pictures))
    return expected


def _whole_batches(pictures: Tensor, batch: int | None) -> Tensor:
    """The pictures, again from the first until the batch is full, where the graph takes one batch only."""
    if batch is None or not len(pictures):
        return pictures
    return pictures[torch.arange(-(-len(pictures) // batch) * batch) % len(pictures)]


def _whole(wanted: int, batch: int | None) -> int:
    """How many pictures to compare: whole batches of them."""
    return wanted if batch is None else -(-wanted // batch) * batch


def _groups(count: int, batch: int | None) -> list[tuple[int, int]]:
    """Each picture alone, then several together; in groups of the fixed batch where there is one."""
    if batch is not None:
        return [(i, i + batch) for i in range(0, count, batch)]
    return list(dict.fromkeys([*((i, i + 1) for i in range(count)), (0, min(count, 4))]))


@torch.no_grad()
def _gates_of(dense: nn.Module, pictures: Tensor) -> list[Array]:
    """The gate of each call of each described block, for pictures that are given one at a time."""
    found: list[list[Array]] = []
    for picture in pictures:
        blocks = dense_blocks(dense)
        for block in blocks:
            block.gates.clear()
        dense(picture[None])
        found.append([gate.numpy() for block in blocks for gate in block.gates])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _joined(gates: Sequence[Array]) -> Array:
    """One output of them all, BxsumE; gates per pixel are left out."""
    joined: Array = np.concatenate([gate for gate in gates if gate.ndim == 2], axis=1)
    return joined
