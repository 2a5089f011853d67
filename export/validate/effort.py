"""How long a comparison may take: what is compared beyond the least follows from the time that the model itself takes.

Processor time, so that neither other work on the machine nor its number of cores decides what is compared.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

__all__ = ["SECONDS", "SIDE_SECONDS", "Effort"]

SECONDS = 60.0  # of a file's comparison with its model, beyond the least
SIDE_SECONDS = 30.0  # of the tile graph's
_QUADRATIC = 2.0  # the steepest growth with the pixels that is expected: every pixel compared with every other


class Effort:
    """Processor seconds for what is compared beyond the least, and what was left out for want of them (``left_out``).

    ``seconds``: how many there are; infinity: everything is compared. What the model took is told by :meth:`timed`; a
    runtime is expected to take as long.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._seconds, self._spare = seconds, seconds
        self._known: dict[int, float] = {}  # by the pixels of a picture: seconds of the model
        self.left_out: list[str] = []

    def another(self, seconds: float) -> Effort:
        """Another budget for the same model, whose times are known."""
        other = Effort(seconds if math.isfinite(self._seconds) else math.inf)
        other._known = self._known
        return other

    @contextlib.contextmanager
    def timed(self, pixels: int, count: int) -> Iterator[None]:
        """Within it, the model is asked for ``count`` pictures of ``pixels`` each."""
        start = time.process_time()
        yield
        took = (time.process_time() - start) / count
        self._known[pixels] = min(took, self._known.get(pixels, math.inf))

    def expects(self, pixels: int) -> float:
        """Seconds that the model is expected to take for a picture of ``pixels``: from the largest that it was asked
        for, and how its time grew up to there, at least in proportion to the pixels. 0 before it was asked."""
        if not self._known:
            return 0.0
        largest = max(self._known)
        took, growth = self._known[largest], 1.0
        smaller = [n for n in self._known if 2 * n <= largest and self._known[n] > 0]
        if smaller and took > 0:
            near = max(smaller)
            growth = math.log(took / self._known[near]) / math.log(largest / near)
        return took * (pixels / largest) ** min(max(growth, 1.0), _QUADRATIC)

    def affords(self, what: str, pixels: int, runs: float) -> bool:
        """Whether there is time for ``runs`` of pictures of ``pixels`` each, by the model and the runtimes together: it
        is taken from what is left, or ``what`` is noted as left out."""
        needed = runs * self.expects(pixels)
        if needed > self._spare:
            self.left_out.append(what)
            return False
        self._spare -= needed
        return True

    def told(self) -> tuple[str, ...]:
        """A sentence on what was left out, empty where nothing was."""
        if not self.left_out:
            return ()
        return (
            f"not compared, for the model takes {self.expects(10**6):.0f} s a megapixel and {self._seconds:.0f} s were "
            f"left for it: {', '.join(self.left_out)}; clusir-verify --module --sizes compares any size",
        )
