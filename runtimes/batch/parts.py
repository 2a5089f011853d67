"""What travels through the pipeline: an opened picture, what it looks like before and after, what became of it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError
from clusir.runtimes.batch.jobs import Job
from clusir.runtimes.images.files import Picture
from clusir.runtimes.images.metadata.colour import shown_as_srgb
from clusir.runtimes.images.names import as_text
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.restore.restorer import RowSource, Work

__all__ = ["Look", "Opened", "Outcome", "Stamp", "Watched", "look_at"]

_BAND = 256


@dataclass
class Look:
    """The picture before and after, HxWxC, for comparison and report; every ``step``-th pixel of a huge one."""

    before: NDArray[Any]
    after: NDArray[Any]
    step: int


@dataclass
class Outcome:
    """What became of one job. ``status``: restored, skipped (done before), failed (``reason`` says why).
    ``input_sha256`` is the digest of the bytes that were read."""

    job: Job
    status: str
    reason: str | None = None
    info: PictureInfo | None = None
    work: Work = field(default_factory=Work)
    decode_s: float = 0.0
    encode_s: float = 0.0
    look: Look | None = None
    input_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The line that ``--json`` prints."""
        job = self.job
        line: dict[str, Any] = {"input": as_text(str(job.source)), "output": as_text(str(job.target))}
        line["status"] = self.status
        if self.reason is not None:
            line["reason"] = as_text(self.reason)
        if self.status == "restored" and self.info is not None:
            line |= {"width": self.info.width, "height": self.info.height, "channels": self.info.channels}
            line |= {"bits": 8 * self.info.dtype.itemsize, "tiles": self.work.tiles}
            times = {"decode": self.decode_s, "infer": self.work.infer_s, "encode": self.encode_s}
            line["ms"] = {k: round(1000 * v, 2) for k, v in times.items()}
            if self.info.notes:
                line["notes"] = list(self.info.notes)
        return line


@dataclass(frozen=True)
class Stamp:
    """A file as it was when its digest was taken."""

    path: Path
    sha256: str
    state: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """None for what is no regular file or cannot be read: opening it says why. Raises ImageError where the file
        does not stand still."""
        for _ in range(3):
            try:
                if not stat.S_ISREG(path.stat().st_mode):
                    return None
                with path.open("rb") as stream:
                    before = _state(os.fstat(stream.fileno()))
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if before == _state(path.stat()):
                    return cls(path, digest, before)
            except OSError:
                return None
        raise ImageError(f"{path}: it is being written; run again when it is complete")

    def check(self) -> None:
        """Raises ImageError where the file is not the one of the digest any more."""
        try:
            same = _state(self.path.stat()) == self.state
        except OSError:
            same = False
        if not same:
            raise ImageError(f"{self.path}: it changed while it was read; run again when it is complete")


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Watched:
    """A picture that keeps every ``step``-th pixel of the rows that come out of a restoration, and the pixels that they
    were made from of the rows that are read: where a model enlarges, one for several."""

    def __init__(self, picture: Picture, info: PictureInfo, step: int) -> None:
        self._picture, self._row = picture, 0
        self.height, self.width, self.channels = picture.height, picture.width, picture.channels
        self._rows, self._columns = _Grid.of(info.height, step), _Grid.of(info.width, step)
        self._scale = max(1, info.height // max(1, picture.height))
        size = (len(self._rows.places), len(self._columns.places))
        self._before = np.zeros((*size, picture.channels), picture.info.dtype)
        self._after = np.zeros((*size, info.channels), info.dtype)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        band = self._picture.rows(start, stop)
        self._keep(self._before, band, start, self._scale)
        return band

    def taken(self, bands: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The restored bands, looked at as they pass."""
        for band in bands:
            self._keep(self._after, band, self._row, 1)
            self._row += band.shape[0]
            yield band

    def _keep(self, kept: NDArray[Any], band: NDArray[Any], start: int, scale: int) -> None:
        rows, columns = self._rows.places // scale, self._columns.places // scale
        first, last = np.searchsorted(rows, (start, start + len(band)))
        for at in range(first, last):
            kept[at] = band[rows[at] - start, columns]

    def look(self) -> Look:
        """Both as sRGB, which is what comparison and report are seen in."""
        info = self._picture.info  # what the numbers mean does not change, though the output may not be able to say it
        return Look(shown_as_srgb(self._before, info), shown_as_srgb(self._after, info), self._rows.step)


@dataclass(frozen=True)
class _Grid:
    """Every ``step``-th of a number of places."""

    step: int
    places: NDArray[np.int64]

    @classmethod
    def of(cls, length: int, step: int) -> _Grid:
        return cls(step, np.arange(0, length, step))


def look_at(source: Picture, target: Picture, step: int) -> Look:
    """Before and after of a picture that is done. Raises ImageError where the one cannot have become the other."""
    scale = max(1, target.height // source.height)
    if (source.height * scale, source.width * scale) != (target.height, target.width):
        raise ImageError(
            f"{target.path}: {target.width}x{target.height} pixels, its input has {source.width}x{source.height}; "
            "there is nothing to compare"
        )
    watched = Watched(source, target.info, step)
    for start in range(0, source.height, _BAND):
        watched.rows(start, min(start + _BAND, source.height))
    bands = (target.rows(y, min(y + _BAND, target.height)) for y in range(0, target.height, _BAND))
    for _ in watched.taken(bands):
        pass
    return watched.look()


@dataclass
class Opened:
    """A decoded picture that waits to be restored; it holds ``amount`` bytes of the memory gate. ``streams``: whether
    its file is read on while it is restored."""

    outcome: Outcome
    rows: RowSource
    info: PictureInfo
    amount: int
    stamp: Stamp
    streams: bool
