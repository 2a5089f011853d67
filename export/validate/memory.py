"""Whether a picture fits into the memory that is free, by what smaller ones took: an export must not be ended by the
system because of a picture that is only compared."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clusir.runtimes.machine.allowed import free_bytes, held_bytes
from clusir.runtimes.runners.base import Array

__all__ = ["TORCH", "Memory", "Watched", "steps_to"]

TORCH = "PyTorch"
_SHARE = 0.8  # of what is free: other programs take some of it meanwhile
_PERIOD_S = 0.005
_LARGE = 256 * 256  # pixels that no picture is given without another before it
_CLOSE = 4.0  # times the pixels: up to here one picture alone says what a larger one takes, however long both are
_FAR_APART = 1.4  # pixels of two pictures whose difference says how memory grows: closer ones differ by chance

Size = tuple[int, int]


class Memory:
    """What pictures took of the memory, by runtime, and so what larger ones will.

    ``free``: bytes that may still be taken; ``held``: bytes that this process holds. ``told``: one sentence for
    each size that was not compared as it was asked for.
    """

    def __init__(self, free: Callable[[], int] = free_bytes, held: Callable[[], int] = held_bytes) -> None:
        self._free, self._held = free, held
        self._grown: dict[str, dict[Size, int]] = {}
        self._least: dict[str, int] = {}  # held before a picture was given
        self.told: list[str] = []

    @contextmanager
    def watched(self, runtime: str, size: Size) -> Iterator[None]:
        """While one picture of ``size`` (height, width in pixels) is answered, how far memory grows is looked at."""
        known = self._grown.setdefault(runtime, {})
        # What a picture of no more pixels has left is counted, from ``least`` on; what a larger one has left would hide
        # all that this one takes.
        if not known or math.prod(size) < max(map(math.prod, known)):
            _give_back()
        start = self._held()
        least = self._least[runtime] = min(start, self._least.get(runtime, start))
        with _peak(self._held) as peak:
            yield
        known[size] = max(known.get(size, 0), peak[0] - least)

    def need(self, runtime: str, size: Size) -> int:
        """The most bytes that a picture of ``size`` is expected to take, 0 where none is known.

        What attends to every pixel from every pixel grows with the square of their number, and nothing here grows
        faster: a constant and a square through two pictures is never less than what lies between.
        """
        known = self._grown.get(runtime, {})
        if not known:
            return 0
        within = [took for (h, w), took in known.items() if size[0] <= h and size[1] <= w]
        if within:
            return min(within)
        close = (took * times**2 for at, took in known.items() if took and (times := _times(size, at)) <= _CLOSE)
        return math.ceil(min([_through(known, size), *close]))

    def spare(self) -> int:
        """Bytes that a picture may take."""
        return int(_SHARE * self._free())

    def fits(self, runtime: str, size: Size, count: int = 1) -> bool:
        """Whether ``count`` pictures at once are expected to fit; True where nothing is known."""
        return count * self.need(runtime, size) <= self.spare()

    def ways(self, runtime: str, sizes: Sequence[Size]) -> Iterator[Size]:
        """Of ``sizes``, from the largest to the smallest, the largest that is expected to fit; then, since more is
        known by then, a larger one that fits after all, to the first of them. Each must be answered before the next is
        asked for; where it is not the first in the end, that is told."""
        left = list(sizes)
        done: Size | None = None
        while found := next((size for size in left if self.fits(runtime, size)), None):
            yield found
            left, done = left[: left.index(found)], found
        if left:
            self.tell(runtime, left[0], "nothing" if done is None else "{}x{}".format(*done))

    def tell(self, runtime: str, size: Size, instead: str = "nothing") -> None:
        """Note that a picture of ``size`` was not compared, and what was ``instead``."""
        self.told.append(
            f"a picture of {size[0]}x{size[1]} would take up to {_gb(self.need(runtime, size))} of memory on {runtime} "
            f"and {_gb(self._free())} are free: {instead} was compared instead"
        )

    def sentences(self) -> tuple[str, ...]:
        """Those of ``told``, each once; of a size and runtime the last."""
        return tuple(dict.fromkeys(self.told))


def _through(known: Mapping[Size, int], size: Size) -> float:
    """What ``size`` takes by all that is known of smaller ones. Attention along one axis grows with its length: a long
    picture counts as one of that length."""
    pixels = int(math.sqrt(size[0] * size[1]) * max(size))
    points = sorted((h * w, took) for (h, w), took in known.items())
    last, took = points[-1]
    if pixels <= last:
        return max(took for _, took in points)
    slopes = [(took - less) / (last**2 - n**2) for n, less in points if n * _FAR_APART <= last]
    if not slopes:
        return took * (pixels / last) ** 2
    return max(took * pixels / last, took + max(slopes) * (pixels**2 - last**2))


def _times(size: Size, known: Size) -> float:
    """How many times the pixels of ``known`` a picture has that is as high and wide as both: no axis grows more."""
    return math.prod(map(max, size, known)) / math.prod(known)


def steps_to(sizes: Sequence[Size], padded: Callable[[int], int]) -> list[Size]:
    """``sizes`` behind a quarter and a half of the first, where that is large: nothing would be known of the memory
    that it takes. ``padded``: a length to one that the file takes."""
    height, width = sizes[0]
    steps = [(padded(height // part), padded(width // part)) for part in (4, 2)] if height * width > _LARGE else []
    return [*(size for size in steps if size[0] * size[1] < height * width), *sizes]


@dataclass(frozen=True)
class Watched:
    """``run``, one picture 1xCxHxW to its answer, whose memory is looked at."""

    memory: Memory
    runtime: str
    run: Callable[[Array], Array]

    def __call__(self, image: Array) -> Array:
        height, width = image.shape[2:]
        with self.memory.watched(self.runtime, (height, width)):
            return self.run(image)

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture of that size is expected to fit."""
        return self.memory.fits(self.runtime, (height, width))


@contextmanager
def _peak(held: Callable[[], int]) -> Iterator[Sequence[int]]:
    """The most that was held within it, in the one element of a list; looked at often, in a thread of its own."""
    peak, done = [held()], threading.Event()

    def look() -> None:
        while not done.wait(_PERIOD_S):
            peak[0] = max(peak[0], held())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], held())


def _give_back() -> None:
    """What glibc keeps for later is given back: a picture that is answered from it would seem to take nothing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
