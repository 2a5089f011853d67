"""What a runner checks before it hands arrays to a runtime, so that a mistake reads the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clusir.errors import UsageError
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.numbers import number_feeds
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["check_feeds"]


def check_feeds(
    feeds: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str | None]],
    name: str,
    spec: ModelSpec | None = None,
) -> dict[str, Array]:
    """The arrays for every graph input, contiguous float32.

    ``inputs`` maps a graph input to its shape (an int is fixed, anything else is free). Raises UsageError where an
    input is missing, unknown, or has another rank or another fixed length, or where the picture has a height or width
    that the size rule of ``spec`` does not allow: a runtime may answer such a one with another shape, or with numbers
    that mean nothing. float64 and float16 are converted. Numbers of ``spec`` that are not given have their defaults;
    those that the runtime does not know are left out: OpenVINO drops inputs that nothing reads of a file in memory.
    """
    if spec is not None and spec.numbers:
        feeds = {**number_feeds(spec), **feeds}
        feeds = {key: value for key, value in feeds.items() if key in inputs or key not in spec.numbers}
    if set(feeds) != set(inputs):
        raise UsageError(f"{name}: given inputs {sorted(feeds)}, the model takes {sorted(inputs)}")
    ready = {}
    for key, shape in inputs.items():
        array = feeds[key]
        fits = array.ndim == len(shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            allowed = "x".join(str(n) if isinstance(n, int) else "?" for n in shape)
            given = "x".join(map(str, array.shape))
            raise UsageError(f"{name}: input {key} is {given}, the model takes {allowed}; tile or pad the picture")
        if spec is not None and key in (spec.input_name, "image") and array.ndim == 4:
            _check_size(array.shape[2:], spec.size, name)
        ready[key] = np.ascontiguousarray(array, dtype=np.float32)
    return ready


def _check_size(given: Sequence[int], rule: SizeRequirements, name: str) -> None:
    if all(rule.padded(length) == length for length in given):
        return
    shown = "x".join(map(str, given))
    raise UsageError(f"{name}: the picture is {shown} px, the model takes {rule}; pad it, or use clusir-run")
