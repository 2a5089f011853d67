"""Which sizes a traced program is for: where the tracer's guards end, the file itself is asked.

A guard says at which sizes the user's code would have taken the same path as in the trace. Where it does not hold, the
code takes another path, which may well have the same values (padding by nothing, resizing to the same size): that is
decided by comparison, at sizes on the other side of every guard.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from clusir.spec import SizeRequirements

__all__ = ["Guards", "size_rule", "validation_sizes"]

_MOST_CLASSES = 16
_LARGEST_LITERAL = 1024


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

    def broken(self, height: int, width: int) -> tuple[int, ...]:
        """The numbers of the guards that do not hold."""
        names = {"L": {"image": _Shaped((2, self._channels, height, width))}}
        return tuple(n for n, code in enumerate(self._codes) if not self._holds(code, names))

    def _holds(self, code: Any, names: dict[str, Any]) -> bool:
        try:
            return bool(eval(code, self._names, names))
        except ArithmeticError:
            return False

    def lengths(self, multiple: int, minimum: int, height: int, width: int) -> list[int]:
        """Heights and widths worth a look: small ones, those around every number in a guard and around the trace's."""
        numbers = {int(n) for text in self.texts for n in re.findall(r"\d+", text)}
        around = {n for n in numbers if n <= _LARGEST_LITERAL} | {height, width, 2 * height}
        found = {minimum + multiple * k for k in range(9)}
        for number in around:
            found |= {multiple * (number // multiple + k) for k in (-1, 0, 1, 2)}
        return sorted(n for n in found if n >= minimum)


def size_rule(
    guards: Guards, agrees: Callable[[int, int], bool], multiple: int, traced: tuple[int, int]
) -> SizeRequirements | None:
    """The finest rule "multiple of m, at least n" under which the file agrees with the model; None where there is none.

    ``agrees(height, width)``: whether the model takes that size and the file gives the same answer. ``multiple``: what
    the model itself was found to take. ``traced``: height and width of the trace, in pixels.
    """
    agrees = functools.lru_cache(maxsize=None)(agrees)
    height, width = traced
    while height % multiple == 0 and width % multiple == 0:
        minimum = _least(agrees, multiple, height, width)
        if all(agrees(h, w) for h, w in _representatives(guards, multiple, minimum, height, width)):
            return SizeRequirements(multiple_of=multiple, minimum=minimum)
        multiple *= 2
    return None


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


def _representatives(guards: Guards, multiple: int, minimum: int, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Sizes at which other guards are broken than at any size before it, two of each kind, the rarest kinds first."""
    kinds: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    lengths = guards.lengths(multiple, minimum, height, width)
    for h in lengths:
        for w in lengths:
            broken = guards.broken(h, w)
            if broken:
                kinds.setdefault(broken, []).append((h, w))
    for sizes in sorted(kinds.values(), key=len)[:_MOST_CLASSES]:
        sizes.sort(key=lambda size: size[0] * size[1])
        near = [size for size in sizes if size[0] * size[1] <= 2 * height * width] or sizes[:1]
        yield from {near[0], near[len(near) // 2]}


def validation_sizes(rule: SizeRequirements, height: int, width: int) -> list[tuple[int, int]]:
    """The size of the trace, two others that the rule allows (one tall, one wide and larger) and the smallest."""
    if rule.static_px or rule.minimum >= 65536:
        return [(height, width)]
    step = rule.multiple_of
    smaller = max(rule.minimum, rule.padded(min(height, width) * 2 // 3))
    taller = rule.padded(min(height, width)) + step
    wide = rule.padded(max(height, width)) + 3 * step
    sizes = [(height, width), (taller, smaller), (rule.padded(height * 3 // 4) + step, wide)]
    return [*sizes, (rule.minimum, rule.minimum)]
