"""An exported file against the user's module: several sizes, pictures that route differently, every expert forced."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.errors import ValidationError
from clusir.export.experts.registry import dense_blocks
from clusir.export.subjects.checks import first_tensor, reference
from clusir.export.subjects.copies import copied
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import check, compare
from clusir.export.validate.conditioning import ROUNDING_FACTOR, rounding, well_conditioned
from clusir.export.validate.pictures import PictureCheck
from clusir.export.validate.tolerances import tolerance, widened
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array

__all__ = [
    "ModuleCheck",
    "ModuleRow",
    "as_sure_as",
    "compare_answers",
    "forced_copy",
    "on_photos",
    "plain_pictures",
    "probes",
    "validate",
    "warnings_of",
]


# Whatever a model's own rounding is: a file that is further off than this is another model.
_ROUNDING_CEILING = 1e-2
_Answers = tuple[Mapping[str, Array], Mapping[str, Array]]  # what is expected, and what came
_PICTURES, _FEW = 8, 2  # different pictures at the first size, and at the others


@dataclass(frozen=True)
class ModuleRow:
    """One comparison that is within its bound. ``error``: largest absolute difference of any output, relative to the
    larger of 1 and its largest magnitude; ``count``: values compared; ``rounding``: where the bound of the table was
    missed, by how much float32 alone moves PyTorch's own answer, of which four times is allowed."""

    backend: str
    what: str
    error: float
    count: int
    rounding: float = 0.0

    def __str__(self) -> str:
        own = f" (ill-conditioned: rounding moves PyTorch's own answer by {self.rounding:.2g})" if self.rounding else ""
        return f"{self.backend}: {self.what}{own}: {self.error:.1e}"


@dataclass(frozen=True)
class ModuleCheck:
    """What a file is compared with, and on what.

    ``dense``: the user's module with its described blocks made dense (the module itself where there is none);
    ``sizes``: heights and widths in pixels, the first of them with eight different pictures; ``gates``: the tensors of
    the graph that hold the gates of ``dense``'s blocks, one for each call, through which each expert is forced;
    ``batch``: what the graph is fixed to, None where it is free; ``backends``: the runtimes to ask; ``photo_px``: the
    side of a photo, as large as tiles will be, since what is summed over so many pixels is less exact (0: none).
    """

    user: nn.Module
    dense: nn.Module
    sizes: Sequence[tuple[int, int]]
    gates: Sequence[str] = ()
    channels: int = 3
    batch: int | None = None
    backends: Sequence[str] = ("ort",)
    photo_px: int = 0


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

    They differ in brightness, contrast, colour and frequency, which is what routers look at. Always the same ones.
    """
    generator = torch.Generator().manual_seed(11)
    y = torch.linspace(0, 1, height).view(1, height, 1)
    x = torch.linspace(0, 1, width).view(1, 1, width)
    pictures = []
    for index in range(count):
        noise = torch.rand(channels, height, width, generator=generator)
        tint = torch.rand(channels, 1, 1, generator=generator)
        made = _FORMS[index % len(_FORMS)](noise, tint, y, x)
        pictures.append(made.expand(channels, height, width).clamp(0, 1).float())
    return torch.stack(pictures)


def plain_pictures(channels: int, height: int, width: int) -> Tensor:
    """A black, a white and a one-coloured picture (3xCxHxW): where a network divides by a maximum or a variance."""
    colour = torch.linspace(0.2, 0.6, channels).view(1, channels, 1, 1).expand(1, channels, height, width)
    return torch.cat([torch.zeros_like(colour), torch.ones_like(colour), colour])


def compare_answers(what: str, want: Tensor, got: np.ndarray) -> None:
    """Raise ValidationError where ``got`` is not the picture ``want`` within the bound."""
    check(compare({"restored": want.numpy()}, {"restored": got}, tolerance("brought")), what)


def forced_copy(model: onnx.ModelProto, gates: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph with every gate tensor replaced, wherever it is used, by a graph input ``forced_<its name>``; ``gates``
    maps the names to examples, Bx... (all axes but the second are open)."""
    forced = onnx.ModelProto()
    forced.CopyFrom(model)
    for gate, example in gates.items():
        shape = [size if axis == 1 else f"{gate}_{axis}" for axis, size in enumerate(example.shape)]
        forced.graph.input.append(
            onnx.helper.make_tensor_value_info(f"forced_{gate}", onnx.TensorProto.FLOAT, ["batch", *shape[1:]])
        )
    names = {gate: f"forced_{gate}" for gate in gates}

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name in names:
                    node.input[position] = names[name]
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    rename(inner)

    rename(forced.graph)
    kept = [o for o in forced.graph.output if o.name not in names]
    del forced.graph.output[:]
    forced.graph.output.extend(kept)
    return forced


def validate(path: Path, given: ModuleCheck, progress: Callable[[str], None] = lambda _: None) -> list[ModuleRow]:
    """Compare every output of an ONNX file with the user's module; raises ValidationError on the first miss, and where
    there is nothing to compare.

    At every size also black, white and one-coloured pictures, except where the model's own answer to one is not finite,
    or jumps with the last bit of the picture, of a spectrum or of a sum.
    """
    rows: list[ModuleRow] = []
    cases, sure = _cases(given, [o.name for o in onnx.load(path).graph.output], progress), _Sure(given.user)
    for backend in given.backends:
        with open_runner(path, backend, "cpu") as runner:
            for case in cases:
                progress(f"validating on {backend}: {case.label}")
                for start, stop in case.groups:
                    some = case.pictures[start:stop]
                    want = {name: array[start:stop] for name, array in case.expected.items()}
                    answers: _Answers = (want, runner.run({"image": some.numpy()}))
                    what = f"{case.label} {start + 1}..{stop}" if len(case.pictures) > 1 else case.label
                    if case.plain:
                        some, answers = sure.of(what, some, answers)
                    if len(some):
                        rows.append(_row(backend, what, given.user, some, answers))
    if given.gates:
        rows += _forced(path, given)
    if not rows:
        raise ValidationError(f"{path.name}: nothing was compared with the module")
    return rows


@dataclass(frozen=True)
class _Case:
    """Pictures of one size, which of them are given together, and what is expected of each; ``plain``: black, white
    and of one colour."""

    label: str
    pictures: Tensor
    groups: Sequence[tuple[int, int]]
    expected: Mapping[str, Array]
    plain: bool = False


def _cases(given: ModuleCheck, names: Sequence[str], progress: Callable[[str], None]) -> list[_Case]:
    cases = []
    for number, (height, width) in enumerate(given.sizes):
        progress(f"asking the model itself at {height}x{width}")
        large = height * width > 2 * given.sizes[0][0] * given.sizes[0][1]
        pictures = probes(_count(number, given.batch, large), given.channels, height, width)
        groups = _groups(len(pictures), given.batch)
        cases.append(_Case(f"{height}x{width} pictures", pictures, groups, _expected(given, pictures, names)))
        plain = plain_pictures(given.channels, height, width)
        answers = reference(given.user, plain)
        finite = torch.isfinite(answers).flatten(1).all(1)
        if finite.any():
            plain, answers = (_whole_batches(t[finite], given.batch) for t in (plain, answers))
            groups = [(0, len(plain))] if given.batch is None else _groups(len(plain), given.batch)
            label, expected = f"{height}x{width} black, white and one-coloured", _expected(given, plain, names, answers)
            cases.append(_Case(label, plain, groups, expected, plain=True))
    side = given.photo_px
    if side and (given.batch or 1) == 1 and (side, side) not in map(tuple, given.sizes):
        progress(f"asking the model itself for a photo of {side}x{side}")
        photo = torch.from_numpy(natural_picture(side, side, given.channels))
        cases.append(_Case(f"{side}x{side}, photo", photo, [(0, 1)], _expected(given, photo, names)))
    return cases


class _Sure:
    """Leaves plain pictures out of a comparison that misses its bound where the model is not sure of them itself: its
    own answer jumps with the last bit. An answer that is not finite, where the model's is, stays: that no rounding
    does."""

    def __init__(self, user: nn.Module) -> None:
        self._user = user
        self._known: dict[str, Tensor] = {}  # by what is compared, for the next runtime

    def of(self, what: str, pictures: Tensor, answers: _Answers) -> tuple[Tensor, _Answers]:
        """The pictures and answers that are to agree, all of them where all do."""
        want, got = answers
        if what not in self._known and compare(want, got, tolerance("brought")).ok:
            return pictures, answers
        if what not in self._known:
            self._known[what] = well_conditioned(self._user, pictures, torch.from_numpy(want["restored"]))
        kept = self._known[what].numpy() | ~np.isfinite(got["restored"]).reshape(len(pictures), -1).all(axis=1)
        left = tuple({name: array[kept] for name, array in each.items()} for each in answers)
        return pictures[kept], (left[0], left[1])


def _expected(
    given: ModuleCheck, pictures: Tensor, names: Sequence[str], answers: Tensor | None = None
) -> dict[str, Array]:
    """Every output by name; ``answers``: what the model is known to make of the pictures."""
    restored = reference(given.user, pictures) if answers is None else answers
    expected: dict[str, Array] = {"restored": restored.numpy()}
    if "gate" in names:
        expected["gate"] = _joined(_gates_of(given.dense, pictures))
    return expected


def on_photos(path: Path, given: ModuleCheck, precision: str) -> PictureCheck:
    """How a file of a lower ``precision`` is compared with the module; an output ``gate`` is held to its own bound."""
    names = [o.name for o in onnx.load(path).graph.output]

    def run(image: Array) -> dict[str, Array]:
        return _expected(given, torch.from_numpy(image), names)

    return PictureCheck(run, given.sizes, given.channels, given.batch is None, given.backends, tolerance(precision))


def as_sure_as(user: nn.Module) -> Callable[[Array, Array], float]:
    """Pictures and what ``user`` makes of them to how far another answer may be off: as in :func:`validate` by what
    rounding does to its own, and infinity for a picture of one colour of which it is not sure."""

    def allowance(image: Array, restored: Array) -> float:
        pictures = torch.from_numpy(image)
        if image.min() == image.max() and not well_conditioned(user, pictures, torch.from_numpy(restored)).all():
            return math.inf
        return min(ROUNDING_FACTOR * rounding(user, pictures), _ROUNDING_CEILING)

    return allowance


def _whole_batches(pictures: Tensor, batch: int | None) -> Tensor:
    """The pictures, again from the first until the batch is full, where the graph takes one batch only."""
    if batch is None or not len(pictures):
        return pictures
    return pictures[torch.arange(-(-len(pictures) // batch) * batch) % len(pictures)]


def _count(number: int, batch: int | None, large: bool = False) -> int:
    """How many pictures to compare at a size: whole batches, at least one of them; one less where it is large."""
    wanted = _PICTURES if number == 0 else _FEW - large
    return wanted if batch is None else -(-wanted // batch) * batch


def _groups(count: int, batch: int | None) -> list[tuple[int, int]]:
    """Each picture alone, then several together; in groups of the fixed batch where there is one."""
    if batch is not None:
        return [(i, i + batch) for i in range(0, count, batch)]
    return list(dict.fromkeys([*((i, i + 1) for i in range(count)), (0, min(count, 4))]))


def _row(
    backend: str,
    what: str,
    user: nn.Module,
    pictures: Tensor,
    answers: _Answers,
) -> ModuleRow:
    want, got = answers
    bound = tolerance("brought")
    found = compare(want, got, bound)
    if found.ok or not math.isfinite(found.max_abs):
        check(found, f"{backend}, {what}")
        return ModuleRow(backend, what, found.max_abs, found.count)
    own = rounding(user, pictures)
    wider = widened(bound, min(ROUNDING_FACTOR * own, _ROUNDING_CEILING))
    if wider is None:
        check(found, f"{backend}, {what}")
        wider = bound
    found = check(compare(want, got, wider), f"{backend}, {what} (rounding moves PyTorch's own answer by {own:.2g})")
    return ModuleRow(backend, what, found.max_abs, found.count, own)


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


@torch.no_grad()
def _forced(path: Path, given: ModuleCheck) -> list[ModuleRow]:
    """Each expert of each block alone in charge, the same in PyTorch and in the graph."""
    dense = copied(given.dense)
    blocks = dense_blocks(dense)
    batch = given.batch or 1
    image = probes(batch, given.channels, *given.sizes[0])
    rows = []
    experts = [len(b.experts) for b in blocks]
    with tempfile.TemporaryDirectory() as folder:
        turns = []
        for turn in range(max(experts)):
            choice = [turn % n for n in experts]
            for block, expert, n in zip(blocks, choice, experts, strict=True):
                block.forced = torch.eye(n)[expert].expand(batch, n)
                block.gates.clear()
            want = first_tensor(dense(image)).numpy()
            # The gates as each call used them: a block may be called more than once, and its gate may be per pixel.
            used = [np.ascontiguousarray(gate, np.float32) for block in blocks for gate in block.gates]
            if len(used) != len(given.gates):
                raise ValidationError(f"{path.name}: it has {len(given.gates)} gates, the module {len(used)}")
            turns.append((choice, want, dict(zip(given.gates, used, strict=True))))
        forced = Path(folder) / "forced.onnx"
        onnx.save_model(forced_copy(onnx.load(path), turns[0][2]), str(forced))
        for backend in given.backends:
            with open_runner(forced, backend, "cpu") as runner:
                for choice, want, gates in turns:
                    feeds = {f"forced_{name}": array for name, array in gates.items()}
                    got = {"restored": runner.run({"image": image.numpy(), **feeds})["restored"]}
                    what = f"experts forced to {choice}"
                    found = check(compare({"restored": want}, got, tolerance("brought")), f"{backend}, {what}")
                    rows.append(ModuleRow(backend, what, found.max_abs, found.count))
    return rows


def warnings_of(rows: Sequence[ModuleRow]) -> tuple[str, ...]:
    """One sentence where a comparison needed more than the table allows."""
    wide = [row for row in rows if row.rounding]
    if not wide:
        return ()
    worst = max(wide, key=lambda row: row.error)
    return (
        f"{len(wide)} of {len(rows)} comparisons differ by more than the table allows, by up to {worst.error:.2g} "
        f"({worst.what}): the model is ill-conditioned, rounding alone moves its own answer by {worst.rounding:.2g}",
    )
