"""Which sizes a traced program is for: where the tracer's guards end, the file itself is asked.

A guard says at which sizes the user's code would have taken the same path as in the trace. Where it does not hold, the
code takes another path, which may well have the same values (padding by nothing, resizing to the same size): that is
decided by comparison, at sizes on the other side of every guard.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clusir.export.subjects.sizes import largest_length, last_that
from clusir.spec import SizeRequirements

__all__ = ["Guards", "narrow", "size_rule", "validation_sizes"]

_MOST_CLASSES = 16
_LARGEST_LITERAL = 1024
_LONG_CLASSES = 8  # of sizes beyond those of the numbers in guards
_MOST_PIXELS = 512**2  # of such a size that is asked about
_LONG = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)  # the last: no tile is larger
_MOST_STEPS = 6  # of a number in a guard that counts turns or levels
_USEFUL_PX = 256  # the maximum of a rule that is taken although another trace, or a coarser rule, might have none
_LEAST_RANGE_PX = 64


class _Shaped:
    """Stands for the input tensor in a recorded guard, which only ever asks for its size."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def size(self) -> tuple[int, ...]:
        return self._shape


class Guards:
    """The guards of a trace, as functions of height and width (batch of 2: 1 is special to a tracer)."""

    def __init__(self, program: torch.export.ExportedProgram, channels: int) -> None:
        self.texts: list[str] = list(getattr(program, "_guards_code", None) or [])
        self._codes = [compile(code, "<guard>", "eval") for code in self.texts]
        self._names: dict[str, Any] = {"max": max, "min": min, "math": math, "torch": torch, "__builtins__": {}}
        self._channels = channels
        self._sides = [_sides(text) for text in self.texts]
        self._counts = [[side for side in sides if self._steps(side)] for sides in self._sides]

    def broken(self, height: int, width: int) -> tuple[Any, ...]:
        """The numbers of the guards that do not hold, each with what it counts there (turns of a loop, levels)."""
        found: list[Any] = []
        for number, counts in enumerate(self._counts):
            if not self._value(self._codes[number], height, width):
                found += [number, *(self._value(code, height, width) for code in counts)]
        return tuple(found)

    def _value(self, code: Any, height: int, width: int) -> Any:
        try:
            return eval(code, self._names, {"L": {"image": _Shaped((2, self._channels, height, width))}})
        except ArithmeticError:
            return False

    def _steps(self, side: Any) -> bool:
        """Whether a side of a comparison is a number that rises with the size, in few steps."""
        values = [self._value(side, length, length) for length in _LONG]
        return values == sorted(values) and 1 < len(set(values)) <= _MOST_STEPS

    def long(self, multiple: int, height: int, width: int) -> list[int]:
        """Multiples on either side of where a guard ceases to hold, or what it counts has another step, as one side of
        the picture of the trace grows, or both."""
        found = set[int]()
        lines: Sequence[Callable[[int], tuple[int, int]]] = (
            lambda n: (n * multiple, width), lambda n: (height, n * multiple), lambda n: (n * multiple, n * multiple),
        )  # fmt: skip
        grid = sorted({-(-length // multiple) for length in _LONG})
        for code in (*self._codes, *(side for sides in self._counts for side in sides)):
            for line in lines:
                values = [self._value(code, *line(n)) for n in grid]
                for low, high, value, after in zip(grid, grid[1:], values, values[1:], strict=False):
                    if value != after and (bool in (type(value), type(after)) or code not in self._codes):
                        at = last_that(lambda n, line=line, code=code, value=value:  # type: ignore[misc]
                                   bool(self._value(code, *line(n)) == value), low, high)  # fmt: skip
                        found |= {at * multiple, (at + 1) * multiple}
        return sorted(found)

    def lengths(self, multiple: int, minimum: int, height: int, width: int) -> list[int]:
        """Heights and widths worth a look: small ones, those around every number in a guard and around the trace's."""
        numbers = {int(n) for text in self.texts for n in re.findall(r"\d+", text)}
        around = {n for n in numbers if n <= _LARGEST_LITERAL} | {height, width, 2 * height}
        found = {minimum + multiple * k for k in range(9)}
        for number in around:
            found |= {multiple * (number // multiple + k) for k in (-1, 0, 1, 2)}
        return sorted(n for n in found if n >= minimum)


def size_rule(
    guards: Guards,
    agrees: Callable[[int, int], bool],
    multiple: int,
    traced: tuple[int, int],
    takes: Callable[[int, int], bool] = lambda height, width: True,
) -> SizeRequirements | None:
    """The finest rule "multiple of m, at least n" under which the file agrees with the model, with a maximum where it
    does up to one only; None where there is none.

    ``agrees(height, width)``: whether the model takes that size and the file gives the same answer. ``multiple``: what
    the model itself was found to take, as ``takes`` says. ``traced``: height and width of the trace, in pixels.
    """
    agrees = functools.lru_cache(maxsize=None)(agrees)
    height, width = traced
    bounded: SizeRequirements | None = None
    while height % multiple == 0 and width % multiple == 0:
        minimum = _least(agrees, multiple, height, width)
        found = SizeRequirements(multiple, minimum, maximum=_most(guards, agrees, multiple, minimum, traced))
        if not found.maximum:
            longest = max(minimum, 2 * height * width // minimum // multiple * multiple)
            most = largest_length(takes, multiple, minimum, min(longest, _LONG[-1]), _USEFUL_PX)
            found = replace(found, maximum=0 if most is None else most)
        if not narrow(found) and found.maximum != minimum:
            return found
        if found.maximum >= minimum + max(multiple, _LEAST_RANGE_PX) and bounded is None:
            bounded = found
        multiple *= 2
    return bounded


def narrow(rule: SizeRequirements) -> bool:
    """Whether a rule has a maximum below the usual tile, so that another one is looked for first."""
    return 0 < rule.maximum < _USEFUL_PX


def _most(
    guards: Guards, agrees: Callable[[int, int], bool], multiple: int, minimum: int, traced: tuple[int, int]
) -> int:
    """The largest length up to which the file agrees whatever guards are broken, 0 where it does everywhere; less than
    ``minimum`` where it never does."""
    lengths = guards.lengths(multiple, minimum, *traced)
    long = [n for n in guards.long(multiple, *traced) if n >= minimum]
    all_lengths = sorted({minimum, *lengths, *long})
    limit = 1 << 30  # no size with this length, or more, is asked about
    for kind in _kinds(guards, lengths, long, traced):
        if any(max(size) < limit and not agrees(*size) for size in kind.asked):
            limit = min(limit, *(max(size) for size in kind.sizes))
    return 0 if limit == 1 << 30 else max((n for n in all_lengths if n < limit), default=1)


def _sides(text: str) -> list[Any]:
    """Both sides of a comparison, each as code; none of another expression."""
    tree = ast.parse(text.strip(), mode="eval").body
    if not isinstance(tree, ast.Compare):
        return []
    return [compile(ast.Expression(side), "<guard>", "eval") for side in (tree.left, *tree.comparators)]


def _least(agrees: Callable[[int, int], bool], multiple: int, height: int, width: int) -> int:
    """The smallest length that the file serves on either axis and on both, found by halving the interval."""

    def fits(length: int) -> bool:
        return all(agrees(h, w) for h, w in ((length, length), (length, width), (height, length)))

    low, high = 0, min(height, width) // multiple  # in multiples; high is known to work
    if fits(multiple):
        return multiple
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle * multiple) else (middle, high)
    return high * multiple


@dataclass(frozen=True)
class _Kind:
    """Sizes at which the same guards are broken, and those of them that are asked about."""

    sizes: list[tuple[int, int]]
    asked: set[tuple[int, int]]


def _kinds(guards: Guards, lengths: list[int], long: list[int], traced: tuple[int, int]) -> list[_Kind]:
    """Sizes at which other guards are broken than at those before, two of each kind, small ones first: of the rarest
    kinds of ``lengths``, and of what ``long`` ones add to them."""
    near, far = (_by_guards(guards, some) for some in (lengths, sorted({*lengths, *long})))
    rare = sorted(near, key=lambda key: len(near[key]))[:_MOST_CLASSES]
    pixels = 2 * math.prod(traced)
    more = [key for key in far if key not in near and math.prod(far[key][0]) <= max(pixels, _MOST_PIXELS)]
    more = sorted(more, key=lambda key: math.prod(far[key][0]))[:_LONG_CLASSES]
    kinds = []
    for key in (*rare, *more):
        sizes = far[key]
        known = near.get(key, sizes)
        few = [size for size in known if math.prod(size) <= pixels] or known[:1]
        kinds.append(_Kind(sizes, {few[0], few[len(few) // 2]}))
    return sorted(kinds, key=lambda kind: min(map(math.prod, kind.asked)))


def _by_guards(guards: Guards, lengths: list[int]) -> dict[tuple[Any, ...], list[tuple[int, int]]]:
    """The sizes of ``lengths`` at which guards are broken, by which, small ones first."""
    kinds: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for size in sorted(((h, w) for h in lengths for w in lengths), key=math.prod):
        broken = guards.broken(*size)
        if broken:
            kinds.setdefault(broken, []).append(size)
    return kinds


def validation_sizes(rule: SizeRequirements, height: int, width: int) -> list[tuple[int, int]]:
    """The size of the trace, two others that the rule allows (one tall, one wide and larger) and the smallest."""
    if rule.static_px or rule.minimum >= 65536:
        return [(height, width)]
    step = rule.multiple_of
    smaller = max(rule.minimum, rule.padded(min(height, width) * 2 // 3))
    taller = rule.padded(min(height, width)) + step
    wide = rule.padded(max(height, width)) + 3 * step
    sizes = [(height, width), (taller, smaller), (rule.padded(height * 3 // 4) + step, wide)]
    sizes = [(rule.padded(h), rule.padded(w)) for h, w in (*sizes, (rule.minimum, rule.minimum))]
    most = rule.padded(rule.maximum)
    return [*sizes, (rule.minimum, most), (most, rule.minimum)] if rule.maximum else sizes
