"""What travels through the pipeline: an opened picture, its bands on the way to the encoder, and what became of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.runtimes.batch.jobs import Job
from clusir.runtimes.images.files import Picture
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.restore.restorer import Work

__all__ = ["Encoding", "Interrupted", "Look", "LookTaker", "Opened", "Outcome"]

_LOOK_PIXELS = 16 << 20
BANDS_UNDERWAY = 3


@dataclass
class Look:
    """The picture before and after, HxWxC, for comparison and report; every ``step``-th pixel of a huge one."""

    before: NDArray[Any]
    after: NDArray[Any]
    step: int


@dataclass
class Outcome:
    """What became of one job. ``status``: restored, skipped (done before), failed (``reason`` says why)."""

    job: Job
    status: str
    reason: str | None = None
    info: PictureInfo | None = None
    work: Work = field(default_factory=Work)
    decode_s: float = 0.0
    encode_s: float = 0.0
    look: Look | None = None

    def as_json(self) -> dict[str, Any]:
        """The line that ``--json`` prints."""
        line: dict[str, Any] = {"input": str(self.job.source), "output": str(self.job.target), "status": self.status}
        if self.reason is not None:
            line["reason"] = self.reason
        if self.status == "restored" and self.info is not None:
            line |= {"width": self.info.width, "height": self.info.height, "channels": self.info.channels}
            line |= {"bits": 8 * self.info.dtype.itemsize, "tiles": self.work.tiles}
            times = {"decode": self.decode_s, "infer": self.work.infer_s, "encode": self.encode_s}
            line["ms"] = {k: round(1000 * v, 2) for k, v in times.items()}
            if self.info.notes:
                line["notes"] = list(self.info.notes)
        return line


class Interrupted(BaseException):
    """The restoring thread was stopped in the middle of a picture."""


@dataclass
class Opened:
    """A decoded picture that waits to be restored; it holds ``amount`` bytes of the memory gate."""

    job: Job
    picture: Picture
    info: PictureInfo
    amount: int
    outcome: Outcome


class Encoding:
    """One picture on its way to the encoder."""

    def __init__(self, item: Opened, taker: LookTaker | None) -> None:
        self.item, self.taker = item, taker
        self.bands: queue.Queue[NDArray[Any] | BaseException | None] = queue.Queue(maxsize=BANDS_UNDERWAY)
        self.gave_up = threading.Event()
        self.waited_s = 0.0
        self._ended = False

    def received(self) -> Iterator[NDArray[Any]]:
        while True:
            begin = time.perf_counter()
            band = self.bands.get()
            self.waited_s += time.perf_counter() - begin
            if band is None or isinstance(band, BaseException):
                self._ended = True
                if band is not None:
                    raise band
                return
            if self.taker is not None:
                self.taker.take(band)
            yield band

    def drain(self) -> None:
        """Keep the restoring thread from waiting for a reader that is gone."""
        self.gave_up.set()
        while not self._ended:
            band = self.bands.get()
            self._ended = band is None or isinstance(band, BaseException)


class LookTaker:
    """Collects a :class:`Look` from the bands as they pass."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._step = int(np.ceil(np.sqrt(max(1.0, picture.height * picture.width / _LOOK_PIXELS))))
        self._row = 0
        self._parts: list[NDArray[Any]] = []

    def take(self, band: NDArray[Any]) -> None:
        first = -self._row % self._step
        self._parts.append(band[first :: self._step, :: self._step].copy())
        self._row += band.shape[0]

    def look(self) -> Look:
        step, height = self._step, self._picture.height
        rows = [self._picture.rows(y, y + 1)[:, ::step] for y in range(0, height, step)] if step > 1 else []
        before = np.concatenate(rows) if rows else self._picture.rows(0, height)
        return Look(before, np.concatenate(self._parts), step)
