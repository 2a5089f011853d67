"""Which sizes a traced program is for, read from the guards that the tracer recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from clusir.errors import UnsupportedModelError
from clusir.spec import SizeRequirements

__all__ = ["size_rule", "validation_sizes"]

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Shaped:
    """Stands for the input tensor in a recorded guard, which only ever asks for its size."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def size(self) -> tuple[int, ...]:
        return self._shape


def _checker(program: torch.export.ExportedProgram, channels: int) -> Callable[[int, int], bool]:
    """(height, width) -> whether every guard of the trace holds, with a batch of 2 (1 is special to a tracer)."""
    guards = [compile(code, "<guard>", "eval") for code in getattr(program, "_guards_code", None) or []]
    names: dict[str, Any] = {"max": max, "min": min, "math": math, "torch": torch, "__builtins__": {}}

    def holds(height: int, width: int) -> bool:
        image = {"image": _Shaped((2, channels, height, width))}
        try:
            return all(eval(code, names, {"L": image}) for code in guards)
        except (ZeroDivisionError, ArithmeticError):
            return False

    return holds


def size_rule(program: torch.export.ExportedProgram, channels: int, height: int, width: int) -> SizeRequirements:
    """The coarsest rule that the guards of a trace at ``height`` x ``width`` pixels obey.

    Raises UnsupportedModelError where no "multiple of m, at least n" describes them, for example where the code treats
    wide pictures differently from tall ones.
    """
    holds = _checker(program, channels)
    for multiple in _MULTIPLES:
        if height % multiple or width % multiple:
            break
        near = sorted(
            {max(multiple, n + step * multiple) for n in (height, width) for step in (-3, -2, -1, 0, 1, 2, 5)}
        )
        near = [n for n in near if n >= min(height, width) - 3 * multiple and n > 1]
        if not all(holds(h, w) for h in near[2:] for w in near[2:]):
            continue
        smallest = min(height, width)
        while smallest > multiple and all(
            holds(h, w)
            for h, w in (
                (smallest - multiple, smallest - multiple),
                (smallest - multiple, width),
                (height, smallest - multiple),
            )
        ):
            smallest -= multiple
        return SizeRequirements(multiple_of=multiple, minimum=smallest)
    raise UnsupportedModelError(
        f"the model's code takes another path for other sizes than {height}x{width}, and no rule 'multiple of m' "
        "describes for which; pad inside the model instead of branching on the size"
    )


def validation_sizes(rule: SizeRequirements, height: int, width: int) -> list[tuple[int, int]]:
    """The size of the trace, and two others that the rule allows: one tall, one wide and larger."""
    if rule.static_px or rule.minimum >= 65536:
        return [(height, width)]
    step = rule.multiple_of
    smaller = max(rule.minimum, rule.padded(min(height, width) * 2 // 3))
    taller = rule.padded(min(height, width)) + step
    wide = rule.padded(max(height, width)) + 3 * step
    return [(height, width), (taller, smaller), (rule.padded(height * 3 // 4) + step, wide)]
