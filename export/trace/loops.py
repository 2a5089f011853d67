"""Recurrences written as Python loops over a length that follows the picture, traced without unrolling them.

``for t in range(h * w): state = a[:, t] * state + b[:, t]; out.append((state * c[:, t]).sum(-1))`` has as many turns
as the picture has pixels. The loop's body is run a few times instead, with values that stand for all turns at once:
what is read at ``t`` is a :class:`Carried`, the tensor with the loop's axis in front. A value that one turn leaves to
the next is a state. The body is run with the state left open, which tells what it is multiplied by and what is added;
all states at once are then :func:`clusir.export.lowering.scan.linear_scan` of these, and the body runs a last time with
them known.

Nothing is guessed: a loop whose states are not linear in their predecessors, element by element, raises
:class:`LoopNotCapturedError`, and the caller may unroll it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.scan import linear_scan
from clusir.export.subjects.user_code import calling_user_line
from clusir.export.trace.carried import UNKNOWN, Carried, Linear, Step, aligned, same_shape, step_of

__all__ = ["Loop", "LoopNotCapturedError", "Loops", "Parts", "Steps", "Zipped"]


class LoopNotCapturedError(UnsupportedModelError):
    """A loop that is no linear recurrence: ``line`` says where, ``turns`` how many it has in the trace, ``symbolic``
    whether their number follows the picture."""

    def __init__(self, line: str, turns: int, why: str, symbolic: bool = True) -> None:
        super().__init__(
            f"{line}: a loop of {turns} turns, whose number follows the size of the picture, would be unrolled: {why}; "
            "write it with tensors (cumsum, a scan in parallel), describe it with "
            "clusir.export.scans.registry.register_scan, or export one small size with --size"
        )
        self.line, self.turns, self.symbolic = line, turns, symbolic


class _State:
    """A local variable that one turn leaves to the next: ``before`` the loop, and, once known, at every turn."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.start: Tensor = before  # in the type and shape of the states
        self.states: Tensor | None = None  # after each turn
        self.previous: Tensor | None = None  # before each turn


class Loop:
    """One ``for`` statement that is run for all its turns at once.

    Its body runs for the first turn as it is, which shows what a state is after it; then with values of all turns: once
    for their shapes, with the states left open until all are told, and once for good. Code that asks which turn it is
    in is told that it is neither in the first nor in the last; what these do then stands beside what the others do.
    """

    def __init__(self, frame: FrameType, turns: Any, line: str) -> None:
        self.turns, self.line, self.skipped = turns, line, 0
        self.hint = int(turns.node.hint) if isinstance(turns, torch.SymInt) else int(turns)
        self.symbolic = isinstance(turns, torch.SymInt)
        self.turn, self.made, self.opened = 0, 0, 1  # opened: the turn after which the shapes are found
        self.closed = self.final = False
        self.alone: set[str] = set()  # turns that run by themselves
        self.now_alone = ""
        self.before = self.after_first = dict(frame.f_locals)
        self.names: dict[int, str] = {}  # what the last turn left: by identity of the value, its local name
        self.left: list[Any] = []  # kept alive, so that no other value gets one of these identities
        self.read: dict[str, _State] = {}
        self.answers: dict[int, Tensor] = {}
        self.written: set[int] = set()
        self.seen: set[int] = set()

    def refuse(self, why: str) -> LoopNotCapturedError:
        return LoopNotCapturedError(self.line, self.hint, why, self.symbolic)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def next_turn(self, frame: FrameType) -> bool:
        """Whether the body runs once more; called wherever Python asks for the loop's next value."""
        if self.turn and not self._look(dict(frame.f_locals)):
            self.closed = True
            return False
        self.turn, self.made = self.turn + 1, 0
        if self.turn == 1:
            self.now_alone = "first"
        return True

    def run_alone(self, which: str) -> None:
        """The first or the last turn does something else than the others."""
        self.alone.add(which)

    def _look(self, now: dict[str, Any]) -> bool:
        """After a turn: what it left, and which states it told. Returns whether there is another one."""
        done, self.now_alone = self.now_alone, ""
        if done == "last":
            return False
        if done == "first":
            self.after_first = now
        elif self.turn == self.opened + 1:
            if "first" in self.alone and not self.skipped:
                self._without_first()
        elif not self.final:
            self.final = self._solve_all(now)
        elif "last" in self.alone:
            self.now_alone = "last"
        else:
            return False
        self.left = list(now.values())
        self.names = {id(v): name for name, v in now.items() if isinstance(v, Carried)}
        return True

    def _without_first(self) -> None:
        """Begin anew behind the first turn."""
        self.alone.add("first")
        self.before, self.opened, self.read = self.after_first, self.turn, {}
        self.turns, self.skipped = self.turns - 1, 1

    def _solve_all(self, now: dict[str, Any]) -> bool:
        """Whether all states are known now."""
        numbers = (Tensor, int, float)
        if not self.skipped and any(not isinstance(s.before, numbers) for s in self.read.values()):
            self._without_first()  # ``state = None`` before the loop
            return False
        still = {name: s for name, s in self.read.items() if s.states is None}
        solved = [name for name, state in still.items() if self._solve(name, state, now.get(name))]
        if still and not solved:
            raise self.refuse(
                f"{', '.join(sorted(still))} is not its last value times something plus something, element by element"
            )
        return len(solved) == len(still)

    def _solve(self, name: str, state: _State, new: Any) -> bool:
        if not isinstance(new, Carried):
            raise self.refuse(f"{name} is a number or the same tensor after every turn")
        form = new.form
        if form is UNKNOWN or (isinstance(form, Linear) and form.state != name):
            return False
        state.start = before = self._before(name, state.before, new.series)
        if form is None:  # a value of this turn alone: what was left is the last turn's
            state.states = new.series
        else:
            decay, entry = (self._whole(part, new.series) for part in (form.factor, form.rest))
            state.states = linear_scan(decay.contiguous(), entry.contiguous(), before)
            self.answers[new.number] = state.states
        state.previous = torch.cat([before[None], state.states[:-1]])
        return True

    def _before(self, name: str, value: Any, like: Tensor) -> Tensor:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return torch.full_like(like[0], value)
        if not isinstance(value, Tensor):
            raise self.refuse(f"{name} is no tensor before the loop")
        return value.to(like.dtype).expand(like.shape[1:])

    def _whole(self, part: Any, like: Tensor) -> Tensor:
        """A factor or a rest at every turn, in the shape of the state."""
        if isinstance(part, Carried):
            series = aligned(part.series, like.dim())
        elif isinstance(part, Tensor):
            series = part
        else:
            series = torch.full((), float(part), dtype=like.dtype)
        series = series.to(like.dtype)
        return series if same_shape(series, like) else series.expand(like.shape)

    @property
    def last_of_all(self) -> int:
        """The turn whose values are the answer of all turns that do not run alone."""
        return self.turn - ("last" in self.alone)

    # -- values --------------------------------------------------------------------------------------------------------

    def carried(self, series: Tensor, form: Any = None) -> Carried:
        self.made += 1
        if self.final and self.made in self.answers:
            series = self.answers[self.made]
        return Carried(self, series, form, self.turn, self.made)

    def current(self, value: Carried) -> Any:
        """A value as this turn sees it: one of an earlier turn is a state, a plain tensor in a turn that runs alone."""
        if value.turn == self.turn:
            return value
        name = self.names.get(id(value))
        if name is None:
            raise self.refuse("a value is left to the next turn elsewhere than in a variable of the function")
        if self.turn == self.opened + 1:
            return self.before.get(name)
        state = self.read.setdefault(name, _State(self.before.get(name)))
        if state.previous is not None:
            if self.now_alone == "last":
                assert state.states is not None
                return torch.cat([state.start[None], state.states[-2:-1]])[-1]
            return Carried(self, state.previous, None, self.turn, 0)
        return Carried(self, value.series, Linear(name, 1.0, 0.0), self.turn, 0)

    def part(self, source: Tensor, dim: int, step: Step) -> Carried:
        """``source`` at ``step`` of an axis, for every turn."""
        if id(source) in self.written:
            raise self.refuse("it reads what it has written itself")
        self.seen.add(id(source))
        start, end = step.start, step.start + step.stride * (self.turns - 1)
        low = start if step.stride > 0 else end
        if isinstance(low, int) and low < 0:
            raise self.refuse("an index is negative")
        window = source.narrow(dim, low, self.turns)
        if step.stride < 0:
            window = window.flip(dim)
        return self.carried(window.movedim(dim, 0))

    def write(self, target: Tensor, index: tuple[Any, ...], value: Any) -> None:
        """``target[index] = value`` where one item of the index is a step."""
        if id(target) in self.seen:
            raise self.refuse("it reads what it has written itself")
        self.written.add(id(target))
        if not self.final:
            return
        at = next(i for i, item in enumerate(index) if step_of(item) is not None)
        step = step_of(index[at])
        assert step is not None
        low = step.start if step.stride > 0 else step.start + step.stride * (self.turns - 1)
        if step.stride > 0 and at == 0 and len(index) > 1 and isinstance(index[1], Carried):
            self._scatter(target, low, index[1:], value)
            return
        plain = tuple(item if i != at else slice(low, low + self.turns) for i, item in enumerate(index))
        if any(not isinstance(item, (int, slice)) for item in plain):
            raise self.refuse("a write with such an index")
        kept = sum(isinstance(item, slice) for item in index[:at])
        series = value.series if isinstance(value, Carried) else value
        if isinstance(value, Carried):
            if isinstance(index[at], slice):
                where = series.dim() - 1 - (target.dim() - sum(isinstance(i, int) for i in index)) + kept + 1
                series = series.squeeze(where)
            axes = target.dim() - sum(isinstance(i, int) for i in plain)
            series = aligned(series, axes)
            series = series.flip(0) if step.stride < 0 else series
            series = series.movedim(0, kept)
        target[plain] = series

    def _scatter(self, target: Tensor, low: Any, items: tuple[Any, ...], value: Any) -> None:
        """``target[t, where[t]] = value`` for all turns."""
        if any(item != slice(None) for item in items[1:]):
            raise self.refuse("a write with such an index")
        where = self.current(items[0]).series
        rows = torch.arange(self.turns).reshape([-1] + [1] * (where.dim() - 1)) + low
        target[rows, where] = value.series if isinstance(value, Carried) else value


_FEW, _MANY = 8, 512  # turns of a loop that is left to Python: over a few windows; a fixed number


class Loops:
    """The captured loops of one trace. ``unrolled``: lines whose loops are left to Python; ``batch``: how many pictures
    the trace is given; ``over_batch``: the lines of captured loops over them."""

    def __init__(self, unrolled: frozenset[str] = frozenset()) -> None:
        self.unrolled = unrolled
        self.used = False
        self.batch: Any = None
        self.over_batch: set[str] = set()
        self._open: dict[tuple[int, int], Loop] = {}

    def captures(self, turns: Any) -> bool:
        """Whether a loop of so many turns is to be captured: one that follows the picture or the batch, or a very long
        one."""
        line = calling_user_line()
        if not isinstance(turns, torch.SymInt):
            return turns > _MANY and line not in self.unrolled
        over_batch = isinstance(self.batch, torch.SymInt) and turns.node.expr == self.batch.node.expr
        many = over_batch or (turns.node.has_hint() and int(turns.node.hint) > _FEW)
        if not many or line in self.unrolled:
            return False
        if over_batch:
            self.over_batch.add(line)
        return True

    def enter(self, frame: FrameType, turns: Any) -> Loop:
        """The loop that asks for a value in ``frame``, the same for all that it runs over side by side."""
        key = (id(frame), frame.f_lasti)
        loop = self._open.get(key)
        if loop is None or loop.closed:
            self.used = True
            line = calling_user_line()
            if dis.opname[frame.f_code.co_code[frame.f_lasti]] != "FOR_ITER":
                hint = turns.node.hint if isinstance(turns, torch.SymInt) else turns
                why = "it is no for statement over a range or a tensor's parts"
                raise LoopNotCapturedError(line, int(hint), why, isinstance(turns, torch.SymInt))
            loop = self._open[key] = Loop(frame, turns, line)
        return loop


class _Along:
    """Something that a ``for`` statement may run over, turn by turn for all turns at once."""

    loops: Loops
    turns: Any

    def __iter__(self) -> Iterator[Any]:
        return _Turns(self)

    def value(self, loop: Loop) -> Any:
        raise NotImplementedError


class _Turns:
    """The iterator of a loop: counts the body's runs. Of several in one ``zip`` the first decides."""

    def __init__(self, along: _Along) -> None:
        self.along, self.turn = along, 0
        self.loop: Loop | None = None

    def __iter__(self) -> _Turns:
        return self

    def __next__(self) -> Any:
        frame = sys._getframe(1)
        if self.loop is None:
            self.loop = self.along.loops.enter(frame, self.along.turns)
        loop = self.loop
        if loop.turn == self.turn and not loop.next_turn(frame):
            raise StopIteration
        self.turn = loop.turn
        return self.along.value(loop)


class Steps(_Along):
    """``range`` with symbolic bounds and a step of 1 or -1."""

    def __init__(self, loops: Loops, start: Any, turns: Any, stride: int = 1) -> None:
        self.loops, self.start, self.turns, self.stride = loops, start, turns, stride

    def __reversed__(self) -> Iterator[Any]:
        return iter(Steps(self.loops, self.start + self.stride * (self.turns - 1), self.turns, -self.stride))

    def value(self, loop: Loop) -> Any:
        if loop.now_alone:
            return self.start if loop.now_alone == "first" else self.start + self.stride * (self.turns - 1)
        return Step(loop, self.start + self.stride * loop.skipped, self.stride)


class Parts(_Along):
    """``tensor.unbind(dim)`` of a symbolic length."""

    def __init__(self, loops: Loops, source: Tensor, dim: int, backwards: bool = False) -> None:
        self.loops, self.source, self.dim, self.backwards = loops, source, dim % source.dim(), backwards
        self.turns = source.shape[self.dim]

    def __reversed__(self) -> Iterator[Any]:
        return iter(Parts(self.loops, self.source, self.dim, not self.backwards))

    def __getitem__(self, at: Any) -> Any:
        index = (slice(None),) * self.dim + (at,)
        return self.source[index]

    def value(self, loop: Loop) -> Any:
        last = self.turns - 1
        if loop.now_alone:
            return self.source.select(self.dim, last if self.backwards == (loop.now_alone == "first") else 0)
        step = Step(loop, last - loop.skipped, -1) if self.backwards else Step(loop, loop.skipped, 1)
        return loop.part(self.source, self.dim, step)


class Zipped:
    """``zip`` of which some run turn by turn for all turns at once."""

    def __init__(self, things: tuple[Any, ...]) -> None:
        self.things = things
        self.turns: Any = next(t.turns for t in things if isinstance(t, (_Along, Zipped)))

    def __iter__(self) -> Iterator[Any]:
        return zip(*self.things, strict=False)
