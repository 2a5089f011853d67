"""Measuring: percentiles, alternating runs, memory in a process of its own.

Two machines rarely agree on milliseconds, and one machine not with itself an hour later; ratios of configurations that
took turns in one process do hold. So one picture of each configuration runs in turn
(:func:`clusir.runtimes.machine.alternating.measure_alternating`), and memory, which one process cannot tell apart, is
measured by :func:`peak_memory_mib` in a process per configuration.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clusir.errors import BackendError, ClusirError
from clusir.runtimes.images.files import open_picture, output_info, save_picture
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.runtimes.restore.restorer import ArraySource, Restorer, Work

__all__ = [
    "Case",
    "Measurement",
    "Percentiles",
    "bench_case",
    "bench_cases",
    "peak_memory_mib",
    "write_photo",
]


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of ``count`` runs."""

    count: int
    p50: float
    p95: float
    p99: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """Of measured seconds (at least one); linear interpolation between neighbours, as numpy does."""
        values = 1000 * np.asarray(seconds, dtype=np.float64)
        p50, p95, p99 = (float(v) for v in np.percentile(values, (50, 95, 99)))
        return cls(len(values), p50, p95, p99, float(values.mean()))


@dataclass(frozen=True)
class Case:
    """One configuration: a model (None: the shipped one) on a backend, for square pictures of ``size_px``."""

    model: str | None
    backend: str
    device: str
    precision: str
    size_px: int
    threads: int | None = None
    batch: int | None = None

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision} {self.size_px} px"


@dataclass
class Measurement:
    """What a case gave. ``total`` is a picture from file to file, ``decode_ms`` to ``encode_ms`` the medians of its
    parts; ``open_ms`` and ``first_ms`` come once, before: opening the model, and the first picture with it."""

    case: Case
    name: str = ""
    total: Percentiles | None = None
    decode_ms: float = 0.0
    infer_ms: float = 0.0
    encode_ms: float = 0.0
    open_ms: float = 0.0
    first_ms: float = 0.0
    peak_mib: float | None = None
    placement: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def images_per_s(self) -> float:
        """Pictures per second, file to file, one after the other."""
        return 1000 / self.total.mean if self.total else 0.0

    @property
    def megapixels_per_s(self) -> float:
        """Megapixels per second of the restoration alone, at its median."""
        return self.case.size_px**2 / 1e3 / self.infer_ms if self.infer_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rates = {"images_per_s": self.images_per_s, "megapixels_per_s": self.megapixels_per_s}
        return {**asdict(self), **rates}


def write_photo(path: Path, size_px: int, seed: int = 0) -> None:
    """A PNG of ``size_px`` squared: smooth shapes, an edge and noise, so that codecs work as on photos."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size_px, 0:size_px] / max(size_px - 1, 1)
    waves = [0.5 + 0.3 * np.sin(6 * (x * a + y * b) + c) for a, b, c in ((1, 2, 0), (2, 1, 1), (3, -1, 2))]
    picture = np.stack(waves, axis=2) + 0.25 * (x + y > 1)[:, :, None] + rng.normal(0, 0.04, (size_px, size_px, 3))
    pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    save_picture(path, [pixels], PictureInfo("PNG", size_px, size_px, 3, np.dtype(np.uint8)))


class _Bench:
    """An opened case: one call restores the picture from file to file and keeps the times of its parts."""

    def __init__(self, case: Case, folder: Path) -> None:
        begin = time.perf_counter()
        self.restorer = Restorer(
            case.model, case.backend, case.device, case.threads, precision=case.precision, batch=case.batch
        )
        self.open_s = time.perf_counter() - begin
        self.source = folder / f"in-{case.size_px}.png"
        self.target = folder / "out.png"
        if not self.source.exists():
            write_photo(self.source, case.size_px)
        self.parts: list[tuple[float, float, float]] = []
        begin = time.perf_counter()
        self()
        self.first_s = time.perf_counter() - begin
        self.parts.clear()

    def __call__(self) -> None:
        marks = [time.perf_counter()]
        picture = open_picture(self.source)
        pixels = picture.rows(0, picture.height)
        info = output_info(picture.info, self.target)
        marks.append(time.perf_counter())
        bands = list(self.restorer.stream(ArraySource(pixels), Work(), info.dtype))
        marks.append(time.perf_counter())
        save_picture(self.target, bands, info)
        marks.append(time.perf_counter())
        decode, infer, encode = np.diff(marks)
        self.parts.append((float(decode), float(infer), float(encode)))

    def measurement(self, case: Case) -> Measurement:
        parts = 1000 * np.median(np.array(self.parts), axis=0)
        return Measurement(
            case,
            self.restorer.name,
            decode_ms=float(parts[0]),
            infer_ms=float(parts[1]),
            encode_ms=float(parts[2]),
            open_ms=1000 * self.open_s,
            first_ms=1000 * self.first_s,
            placement=self.restorer.placement(),
        )


def bench_cases(
    cases: Sequence[Case], runs: int, warmup: int = 2, progress: Callable[[str], None] = lambda text: None
) -> list[Measurement]:
    """Measure ``cases``, those of one size taking turns; a case that fails becomes a measurement with its ``error``.

    Raises BackendError where a backend or device that a case names is not here; ``progress`` is told each case once.
    """
    results: dict[Case, Measurement] = {}
    with tempfile.TemporaryDirectory(prefix="clusir-bench-") as name:
        folder = Path(name)
        for size in dict.fromkeys(case.size_px for case in cases):
            opened: dict[Case, _Bench] = {}
            try:
                for case in (c for c in cases if c.size_px == size):
                    progress(case.label)
                    try:
                        opened[case] = _Bench(case, folder)
                    except BackendError:
                        raise  # what was named is not here: there is nothing to measure
                    except ClusirError as error:
                        results[case] = Measurement(case, error=str(error))
                times = measure_alternating({str(i): bench for i, bench in enumerate(opened.values())}, runs, warmup)
                for i, (case, bench) in enumerate(opened.items()):
                    bench.parts = bench.parts[warmup:]
                    results[case] = bench.measurement(case)
                    results[case].total = Percentiles.of(times[str(i)])
            finally:
                for bench in opened.values():
                    bench.restorer.close()
    return [results[case] for case in cases]


def bench_case(case: Case, runs: int = 3) -> Measurement:
    """One case alone, as the process behind :func:`peak_memory_mib` runs it."""
    return bench_cases([case], runs, warmup=0)[0]


def peak_memory_mib(case: Case, timeout_s: float = 600.0) -> float:
    """Peak resident memory in MiB of a fresh process that opens the model and restores three pictures.

    Measured by the operating system. Raises ClusirError where that process fails.
    """
    command = [sys.executable, "-P", "-m", "clusir.runtimes.machine.measure", json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ClusirError(f"{case.label}: the memory run did not end within {timeout_s:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise ClusirError(f"{case.label}: the memory run failed ({last[:300]})")
    return float(json.loads(lines[-1])["peak_mib"])


def own_peak_mib() -> float:
    """Peak resident memory of this process in MiB.

    Linux's ``ru_maxrss`` starts at the peak of the process that started this one; VmHWM does not.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def _child(text: str) -> int:
    measured = bench_case(Case(**json.loads(text)))
    if measured.error:
        print(measured.error, file=sys.stderr)
        return 1
    print(json.dumps({"peak_mib": own_peak_mib()}))
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
