"""Which heights and widths the user's own code takes, found by asking it: cheap, and before anything is traced."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["Accepted", "accepted_multiple", "largest_length", "last_that", "small_size", "trace_sizes", "why_no_other"]

_LITTLE = 17  # pixels; the longer side is then 83 at least
_LEAST = 72  # pixels; smaller maps meet minima of windows and pads that larger ones do not
_PIXELS_FOR_A_WORD = 512**2  # of a picture that is asked about for what a note says of it
_FINE = 16  # pixels; a file for multiples of so many wastes little


@dataclass(frozen=True)
class Accepted:
    """A model takes heights and widths that are odd multiples of ``multiple`` and at least ``least``, in pixels;
    whether smaller ones too was not asked. ``narrow``: whether a file for a part of them, up to a small maximum, is
    good enough, since no trace gave one for all."""

    multiple: int
    least: int = _LEAST
    narrow: bool = False


def accepted_multiple(takes: Callable[[int, int], bool], height: int, width: int) -> Accepted | None:
    """The smallest divisor m of ``height`` and ``width`` with which the model takes heights and widths that are odd
    multiples of m and differ; None where it takes no other size than the given one.

    ``takes(height, width)``: whether the model answers a picture of that size with one of the same size. Small sizes
    come first. What takes large ones alone (a pool of the deepest map, padded by reflection) takes finer multiples of
    those than small ones show, so larger sizes than the given one are asked for next. No size is asked for twice.
    """
    takes, common = functools.cache(takes), math.gcd(height, width)
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    found = next((Accepted(d) for d in divisors if takes(*small_size(Accepted(d)))), None)
    large = max(height, width)
    if found is None and (little := _little(takes, [d for d in divisors if d <= _FINE])):
        return little
    if large <= _LEAST or (found is not None and found.multiple <= _FINE):
        return found
    if found is None and not takes(*small_size(Accepted(common, large))):
        return None  # what takes no multiple of all divisors takes none of a single one
    coarser = [Accepted(d, large) for d in divisors if found is None or d < found.multiple]
    return next((sizes for sizes in coarser if takes(*small_size(sizes))), found)


def _little(takes: Callable[[int, int], bool], divisors: list[int]) -> Accepted | None:
    """What a model takes that takes no picture of 72 px and more beside one that is longer: a table of positions ends
    before."""
    return next((sizes for d in divisors if takes(*small_size(sizes := Accepted(d, _LITTLE)))), None)


def why_no_other(refusal: Callable[[int, int], str], height: int, width: int) -> str:
    """Why a model that takes ``height`` x ``width`` has no multiple: what it said to a picture of another shape, and
    what else it takes. ``refusal(height, width)``: what it says to a size, empty where it takes it."""
    common = math.gcd(height, width)
    tall, wide = small_size(Accepted(common))
    told = refusal(tall, wide)
    most = max(_PIXELS_FOR_A_WORD, height * width)
    squares = sorted({2 * common, tall, wide} - ({height} if height == width else set()))
    squares = [side for side in squares if side * side <= most] or [common // 2]
    square = next((side for side in squares if not refusal(side, side)), 0)
    if square:
        return (
            f"the model takes other squares, {square}x{square} for one, and --size {square} exports for it, but not "
            f"{tall}x{wide}: {told}"
        )
    return f"the model takes neither {tall}x{wide} nor a square of {' or '.join(map(str, squares))}: {told}"


def small_size(sizes: Accepted) -> tuple[int, int]:
    """The height and width at which a model was asked whether it takes ``sizes``: what is compared of values is
    compared here, since a trace's own size may have many times the pixels."""
    return _odd_sizes(sizes, set())


def _odd_sizes(sizes: Accepted, avoided: set[int]) -> tuple[int, int]:
    """Height and width, odd multiples, unlike each other, unlike any of ``avoided``, and padded to 8, 16, 32 or 64."""
    height = _next_odd(sizes.multiple, sizes.least, avoided)
    return height, _next_odd(sizes.multiple, height + 66, avoided | _paddings(height))


def _next_odd(multiple: int, least: int, avoided: set[int]) -> int:
    factor = -(-least // multiple) | 1
    while _paddings(factor * multiple) & avoided or not _odd_at_levels(factor * multiple, multiple):
        factor += 2
    return factor * multiple


def _odd_at_levels(length: int, multiple: int) -> bool:
    """Whether an odd multiple stays odd where a network halves it, down to an eighth: maps are padded there too."""
    least = multiple & -multiple  # the power of two in it
    return all(length // step % 2 for step in (1, 2, 4) if step >= least)


def _paddings(length: int) -> set[int]:
    return {length, *(-(-length // p) * p for p in (8, 16, 32, 64))}


def trace_sizes(model: nn.Module, sizes: Accepted) -> Iterator[tuple[int, int]]:
    """Heights and widths to trace at, the best first: none equals the other, or a length that the model was built for.

    A tracer that meets two equal lengths, or a length that equals a constant, takes them for the same thing. Odd
    multiples come first, so that code which "pads only if needed" pads; then multiples of 64, where it does not. The
    last is small, for code that counts levels or turns by the size, or has a table of positions: as few as there are.
    """
    built = {n for p in (*model.parameters(), *model.buffers()) for n in p.shape if n > 8}
    yield _odd_sizes(sizes, built)
    step = math.lcm(sizes.multiple, 64)
    if step <= 512 and step != sizes.multiple:
        first = max(3, -(-sizes.least // step) | 1)
        yield first * step, (first + 2) * step
    yield small_size(sizes)


def largest_length(
    takes: Callable[[int, int], bool], multiple: int, minimum: int, longest: int, square: int
) -> int | None:
    """The largest multiple that is taken on either axis beside ``minimum``, and, up to ``square``, on both; None where
    ``longest`` and ``square`` are taken: a table of positions, or of all tokens, ends, and no guard says where."""

    def strips(count: int) -> bool:
        return takes(count * multiple, minimum) and takes(minimum, count * multiple)

    least, most = minimum // multiple, longest // multiple
    bounded = most > least and not strips(most)
    most = last_that(strips, least, most) if bounded else max(most, square // multiple)
    side = min(most, square // multiple)
    if side > least and not takes(side * multiple, side * multiple):
        return last_that(lambda count: takes(count * multiple, count * multiple), least, side) * multiple
    return most * multiple if bounded else None


def last_that(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number for which something holds, as it does for ``low`` and not for ``high``."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
