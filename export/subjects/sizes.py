"""Which heights and widths the user's own code takes, found by asking it: cheap, and before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import nn

__all__ = ["accepted_multiple", "small_size", "trace_sizes", "why_no_other"]

_LEAST = 72  # pixels; smaller maps meet minima of windows and pads that larger ones do not


def accepted_multiple(takes: Callable[[int, int], bool], height: int, width: int) -> int | None:
    """The smallest divisor m of ``height`` and ``width`` with which the model takes heights and widths that are odd
    multiples of m and differ; None where it takes no other size than the given one.

    ``takes(height, width)``: whether the model answers a picture of that size with one of the same size.
    """
    common = math.gcd(height, width)
    for multiple in (d for d in range(1, common + 1) if common % d == 0):
        if takes(*small_size(multiple)):
            return multiple
    return None


def why_no_other(refusal: Callable[[int, int], str], height: int, width: int) -> str:
    """Why a model that takes ``height`` x ``width`` has no multiple: what it said to a picture of another shape, and
    what else it takes. ``refusal(height, width)``: what it says to a size, empty where it takes it."""
    common = math.gcd(height, width)
    tall, wide = small_size(common)
    told = refusal(tall, wide)
    squares = sorted({2 * common, tall, wide} - ({height} if height == width else set()))
    square = next((side for side in squares if not refusal(side, side)), 0)
    if square:
        return (
            f"the model takes other squares, {square}x{square} for one, and --size {square} exports for it, but not "
            f"{tall}x{wide}: {told}"
        )
    return f"the model takes neither {tall}x{wide} nor a square of {' or '.join(map(str, squares))}: {told}"


def small_size(multiple: int) -> tuple[int, int]:
    """The height and width at which a model was asked whether it takes ``multiple``: what is compared of values is
    compared here, since a trace's own size may have many times the pixels."""
    return _odd_sizes(multiple, set())


def _odd_sizes(multiple: int, avoided: set[int]) -> tuple[int, int]:
    """Height and width, odd multiples, unlike each other, unlike any of ``avoided``, and padded to 8, 16, 32 or 64."""
    height = _next_odd(multiple, _LEAST, avoided)
    return height, _next_odd(multiple, height + 66, avoided | _paddings(height))


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


def trace_sizes(model: nn.Module, multiple: int) -> Iterator[tuple[int, int]]:
    """Heights and widths to trace at, the best first: none equals the other, or a length that the model was built for.

    A tracer that meets two equal lengths, or a length that equals a constant, takes them for the same thing. Odd
    multiples come first, so that code which "pads only if needed" pads; then multiples of 64, where it does not.
    """
    built = {n for p in (*model.parameters(), *model.buffers()) for n in p.shape if n > 8}
    yield _odd_sizes(multiple, built)
    step = math.lcm(multiple, 64)
    if step <= 512 and step != multiple:
        yield 3 * step, 5 * step
