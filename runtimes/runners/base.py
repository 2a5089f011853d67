"""The one protocol behind every backend: an opened model that maps named arrays to named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clusir.spec import ModelSpec

__all__ = ["Array", "Runner"]

Array = NDArray[np.float32]


@runtime_checkable
class Runner(Protocol):
    """An opened model. A context manager; safe to call from one thread at a time.

    ``name`` is backend and device, for example ``ort:cpu``; ``spec`` is what the artefact says of itself.
    """

    name: str
    spec: ModelSpec

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. ``feeds`` maps every graph input to a float32 array (images NCHW); returns every graph output. An
        input that is one of ``spec.numbers`` may be left out: it has its default."""
        ...

    def expect(self, size: tuple[int, int] | None) -> None:
        """What follows are many pictures of ``size`` (height, width), one at a time; None: of any size. A graph of open
        size may then be opened once more for that size, which computes the same faster, but for rounding. Which of the
        two runs hangs on the last call alone, so that results do not hang on what ran before."""
        ...

    def placement(self) -> dict[str, int]:
        """Number of graph nodes on each execution provider or device that ran them (after the first run)."""
        ...

    def takes_batches(self) -> bool:
        """Whether it takes any number of pictures at once."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
