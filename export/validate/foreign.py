"""An exported file against the user's module: several sizes, pictures that route differently, every expert forced."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.errors import ClusirError, ValidationError
from clusir.export.experts.registry import dense_blocks
from clusir.export.subjects.checks import first_tensor
from clusir.export.subjects.copies import copied
from clusir.export.validate.cases import Case, ModuleCheck, cases_of, expected_of, photo_of, probes
from clusir.export.validate.compare import check, compare
from clusir.export.validate.conditioning import ROUNDING_FACTOR, Roundings, jumps, undecided_pixels, well_conditioned
from clusir.export.validate.memory import TORCH
from clusir.export.validate.pictures import PictureCheck
from clusir.export.validate.tolerances import tolerance, widened
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array, Runner

__all__ = [
    "ModuleRow",
    "as_sure_as",
    "compare_answers",
    "forced_copy",
    "on_photos",
    "validate",
    "warnings_of",
]


# Whatever a model's own rounding is: a file that is further off than this is another model.
_ROUNDING_CEILING = 1e-2
_MOST_UNDECIDED = 8  # one picture of so many may be left out
_DOUBLED = 2  # float64 takes as much as two pictures
_Answers = tuple[Mapping[str, Array], Mapping[str, Array]]  # what is expected, and what came


@dataclass(frozen=True)
class ModuleRow:
    """One comparison that is within its bound. ``error``: largest absolute difference of any output, relative to the
    larger of 1 and its largest magnitude; ``count``: values compared; ``rounding``: where the bound of the table was
    missed, by how much float32 alone moves PyTorch's own answer, of which four times is allowed. ``undecided``: of a
    picture that is left out, by how much its answer jumps where PyTorch rounds another way. ``pixels``: how many are
    left out, since rounding decides PyTorch's own answer there."""

    backend: str
    what: str
    error: float
    count: int
    rounding: float = 0.0
    undecided: float = 0.0
    pixels: int = 0

    def __str__(self) -> str:
        if self.undecided:
            why = f"rounding decides PyTorch's own answer, which jumps by {self.undecided:.2g}"
            return f"{self.backend}: {self.what}: left out ({why})"
        if self.pixels:
            why = "rounding decides them: PyTorch itself answers otherwise in float64 or a hair beside"
            return f"{self.backend}: {self.what}: {self.pixels} pixels left out ({why}), the others: {self.error:.1e}"
        own = f" (ill-conditioned: rounding moves PyTorch's own answer by {self.rounding:.2g})" if self.rounding else ""
        return f"{self.backend}: {self.what}{own}: {self.error:.1e}"


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


def validate(
    path: Path,
    given: ModuleCheck,
    progress: Callable[[str], None] = lambda _: None,
    cases: Sequence[Case] | None = None,
) -> list[ModuleRow]:
    """Compare every output of an ONNX file with the user's module; raises ValidationError on the first miss, and where
    there is nothing to compare. ``cases``: those of the module, where they are known (:func:`cases_of`).

    A picture that the model's own rounding decides, so that its answer jumps as far (:func:`jumps`), is left out, and
    said in its row; of more than one in eight ValidationError is raised. So are single pixels
    (:func:`undecided_pixels`).

    At every size also black, white and one-coloured pictures, except where the model's own answer to one is not finite,
    or jumps with the last bit of the picture, of a spectrum or of a sum. What does not fit into memory on a runtime is
    left out or, a photo, made smaller, and told in ``given.memory``.
    """
    rows: list[ModuleRow] = []
    if cases is None:
        cases = cases_of(given, [o.name for o in onnx.load(path).graph.output], progress)
    sure = _Sure(given.user)
    sure.asked = sum(len(case.pictures) for case in cases if not case.plain)
    for backend in given.backends:
        with open_runner(path, backend, "cpu") as runner:
            for case in cases:
                for size in given.memory.ways(backend, [case.size, *((px, px) for px in case.smaller)]):
                    fits = case if size == case.size else photo_of(given, list(case.expected), size[0])
                    progress(f"validating on {backend}: {fits.label}")
                    rows += _compared(backend, runner, fits, given, sure)
    if given.gates:
        rows += _forced(path, given)
    if not rows:
        raise ValidationError(f"{path.name}: nothing was compared with the module")
    if len(sure.undecided) > sure.asked // _MOST_UNDECIDED:
        raise ValidationError(
            f"{path.name}: rounding decides the model's own answer to {len(sure.undecided)} of {sure.asked} pictures"
        )
    return rows


def _compared(backend: str, runner: Runner, case: Case, given: ModuleCheck, sure: _Sure) -> Iterator[ModuleRow]:
    """Every picture of a case alone, and those that are to be given together where so many fit."""
    least = given.batch or 1
    together = given.memory.fits(backend, case.size, max(stop - start for start, stop in case.groups))
    apart = dict.fromkeys((i, i + least) for start, stop in case.groups for i in range(start, stop, least))
    for start, stop in case.groups if together else apart:
        some = case.pictures[start:stop]
        want = {name: array[start:stop] for name, array in case.expected.items()}
        what = f"{case.label} {start + 1}..{stop}" if len(case.pictures) > 1 else case.label
        with given.memory.watched(backend, case.size) if len(some) == least else nullcontext():
            try:
                answers: _Answers = (want, runner.run({"image": some.numpy()}))
            except ClusirError as error:
                raise ValidationError(f"{backend}, {what}: {error}") from error
        if case.plain:
            some, answers = sure.of(what, some, answers)
        if not len(some):
            continue
        try:
            yield _row(backend, what, given, some, answers, sure)
        except ValidationError:
            settled = None if case.plain else _settled(given, some, answers)
            if settled is not None:
                others, pixels = settled
                if not pixels:
                    raise
                yield replace(_row(backend, what, given, some, others, sure), pixels=pixels)
                continue
            names = [f"{case.label} {number}" for number in range(start, stop)]
            kept = None if case.plain else sure.decided(names, some, answers)
            if kept is None:
                raise
            jump = max(sure.undecided[name] for name in names if name in sure.undecided)
            yield ModuleRow(backend, what, 0.0, 0, undecided=jump)
            if kept.any():
                left = tuple({name: array[kept.numpy()] for name, array in each.items()} for each in answers)
                yield _row(backend, f"{what}, the others", given, some[kept], (left[0], left[1]), sure)


def _settled(given: ModuleCheck, pictures: Tensor, answers: _Answers) -> tuple[_Answers, int] | None:
    """The answers without the single pixels that PyTorch's own rounding decides, and how many those are: 0 where others
    are off, too. None where there are none, so that the picture as a whole may be what rounding decides."""
    want, got = (torch.from_numpy(each["restored"]) for each in answers)
    height, width = pictures.shape[2:]
    if want.shape != got.shape or not given.memory.fits(TORCH, (height, width), _DOUBLED):
        return None
    found = undecided_pixels(given.user, pictures, want, got)
    if found is None:
        return None
    left, wrong = found
    restored = torch.where(left[:, None], want, got).numpy()
    return (answers[0], {**answers[1], "restored": restored}), 0 if wrong.any() else int(left.sum())


class _Sure:
    """Leaves plain pictures out of a comparison that misses its bound where the model is not sure of them itself: its
    own answer jumps with the last bit. An answer that is not finite, where the model's is, stays: that no rounding
    does."""

    def __init__(self, user: nn.Module) -> None:
        self._user = user
        self.rounding = Roundings(user)
        self._known: dict[str, Tensor] = {}  # by what is compared, for the next runtime
        self.asked = 0  # pictures that are not plain
        self.undecided: dict[str, float] = {}  # of them by name, how far the model's own answer jumps

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

    def decided(self, names: Sequence[str], pictures: Tensor, answers: _Answers) -> Tensor | None:
        """Which of some pictures that missed their bound are to agree all the same, since the model decides them; None
        where that is so of all."""
        want, got = (torch.from_numpy(each["restored"]) for each in answers)
        if want.shape != got.shape:
            return None
        kept = torch.ones(len(pictures), dtype=torch.bool)
        for number, name in enumerate(names):
            one = slice(number, number + 1)
            apart = float((want[one] - got[one]).abs().max()) / max(1.0, float(want[one].abs().max()))
            if not math.isfinite(apart):
                return None
            if apart <= (tolerance("brought").max_abs or 0.0):
                continue
            least = apart / ROUNDING_FACTOR
            if self.undecided.get(name, 0.0) < least:
                found = jumps(self._user, pictures[one], want[one], got[one], least)
                if found < least:
                    return None
                self.undecided[name] = found
            kept[number] = False
        return None if kept.all() else kept


def on_photos(path: Path, given: ModuleCheck, precision: str) -> PictureCheck:
    """How a file of a lower ``precision`` is compared with the module; an output ``gate`` is held to its own bound."""
    names = [o.name for o in onnx.load(path).graph.output]

    def run(image: Array) -> dict[str, Array]:
        return expected_of(given, torch.from_numpy(image), names)

    batches, bound = given.batch is None, tolerance(precision)
    return PictureCheck(run, given.sizes, given.channels, batches, given.backends, bound, memory=given.memory)


def as_sure_as(user: nn.Module) -> Callable[[Array, Array], float]:
    """Pictures and what ``user`` makes of them to how far another answer may be off: as in :func:`validate` by what
    rounding does to its own, and infinity for a picture of one colour of which it is not sure."""

    roundings = Roundings(user)

    def allowance(image: Array, restored: Array) -> float:
        pictures = torch.from_numpy(image)
        if image.min() == image.max() and not well_conditioned(user, pictures, torch.from_numpy(restored)).all():
            return math.inf
        return min(ROUNDING_FACTOR * roundings(pictures, torch.from_numpy(restored)), _ROUNDING_CEILING)

    return allowance


def _row(backend: str, what: str, given: ModuleCheck, pictures: Tensor, answers: _Answers, sure: _Sure) -> ModuleRow:
    want, got = answers
    bound = tolerance("brought")
    found = compare(want, got, bound)
    if found.ok or not math.isfinite(found.max_abs):
        check(found, f"{backend}, {what}")
        return ModuleRow(backend, what, found.max_abs, found.count)
    height, width = pictures.shape[2:]
    fits = given.memory.fits(TORCH, (height, width), _DOUBLED)
    least = found.max_abs / ROUNDING_FACTOR
    own = sure.rounding(pictures, torch.from_numpy(want["restored"]), least) if fits else 0.0
    wider = widened(bound, min(ROUNDING_FACTOR * own, _ROUNDING_CEILING))
    if wider is None:
        check(found, f"{backend}, {what}")
        wider = bound
    found = check(compare(want, got, wider), f"{backend}, {what} (rounding moves PyTorch's own answer by {own:.2g})")
    return ModuleRow(backend, what, found.max_abs, found.count, own)


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
    """A sentence where a comparison needed more than the table allows, and one for each picture that was left out."""
    left = [row for row in rows if row.undecided or row.pixels]
    told = tuple(dict.fromkeys(str(row).partition(": ")[2] for row in left))
    wide = [row for row in rows if row.rounding]
    if not wide:
        return told
    worst = max(wide, key=lambda row: row.error)
    return (
        f"{len(wide)} of {len(rows)} comparisons differ by more than the table allows, by up to {worst.error:.2g} "
        f"({worst.what}): the model is ill-conditioned, rounding alone moves its own answer by {worst.rounding:.2g}",
        *told,
    )
