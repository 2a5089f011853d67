"""What a runner checks before it hands arrays to a runtime, so that a mistake reads the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clusir.errors import UsageError
from clusir.runtimes.runners.base import Array

__all__ = ["check_feeds"]


def check_feeds(
    feeds: Mapping[str, Array], inputs: Mapping[str, Sequence[int | str | None]], name: str
) -> dict[str, Array]:
    """The arrays for every graph input, contiguous float32.

    ``inputs`` maps a graph input to its shape (an int is fixed, anything else is free). Raises UsageError where an
    input is missing, unknown, or has another rank or another fixed length; float64 and float16 are converted.
    """
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
        ready[key] = np.ascontiguousarray(array, dtype=np.float32)
    return ready
