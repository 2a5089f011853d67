"""Numbers that a network takes beside the picture: a noise level, a JPEG quality."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clusir.errors import UsageError
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["number_feeds"]


def number_feeds(
    spec: ModelSpec, given: Mapping[str, float] | None = None, model: str = "the model"
) -> dict[str, Array]:
    """Every further input [1] of a model of ``spec``: the number that is ``given`` by name, else its default. Raises
    UsageError that says what there is for another name, and for a number outside its range."""
    given = given or {}
    ranges = dict(zip(spec.numbers, spec.number_ranges, strict=True))
    for name, number in given.items():
        if name not in ranges:
            raise UsageError(f"--set {name}: {model} has no such input; {_has(spec)}")
        low, high = ranges[name]
        if not low <= number <= high:
            raise UsageError(f"--set {name}={number:g}: it is {low:g}..{high:g} in {model}")
    defaults = zip(spec.numbers, spec.number_defaults, strict=True)
    return {name: np.array([given.get(name, default)], np.float32) for name, default in defaults}


def _has(spec: ModelSpec) -> str:
    numbers = [
        f"{name} ({low:g}..{high:g})" for name, (low, high) in zip(spec.numbers, spec.number_ranges, strict=True)
    ]
    has = [*numbers, *(f"{name} (a picture, or 0..1)" for name in spec.maps)]
    return f"it has {', '.join(has)}" if has else "it takes the picture alone"
