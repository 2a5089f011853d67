"""Which precision pays on this machine: variants timed in turn on each backend, next to what they cost in quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusir.errors import BackendError, ClusirError
from clusir.export.graph.session import Feeds
from clusir.export.precision.loss import QualityLoss

__all__ = ["Advice", "Timing", "advise", "time_variants"]

# Below this gain a second artefact is not worth its quality.
_WORTH = 1.1
# A variant that loses more on any degradation is none to recommend, however fast it is.
_LARGEST_LOSS_DB = 1.0
_LABELS = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one run of one variant on one backend: the median and the fastest of ``runs``."""

    backend: str
    variant: str
    median_ms: float
    best_ms: float
    runs: int


@dataclass(frozen=True)
class Advice:
    """For one backend: the sentence, the variant to use there, its speed-up over fp32 (medians)."""

    backend: str
    variant: str
    speedup: float
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_variants(
    variants: Mapping[str, Path], feeds: Mapping[str, Feeds], backends: Sequence[str], runs: int = 15, warm_up: int = 2
) -> tuple[list[Timing], list[str]]:
    """Time every variant (name to file) on every backend in this process, one run of each in turn.

    Alternating lets a busy machine slow all variants alike, so the ratios hold. ``feeds``: variant to its inputs. Also
    returned: a sentence for each backend or variant that could not run.
    """
    from clusir.runtimes import open_runner
    from clusir.runtimes.machine.alternating import measure_alternating

    timings: list[Timing] = []
    problems: list[str] = []
    for backend in backends:
        with ExitStack() as stack:
            steps: dict[str, Callable[[], object]] = {}
            for name, path in variants.items():
                try:
                    runner = stack.enter_context(open_runner(path, backend=backend, device="cpu"))
                    inputs = dict(feeds[name])
                    for _ in range(warm_up):
                        runner.run(inputs)
                except ClusirError as error:
                    problems.append(f"{name} does not run on {_LABELS.get(backend, backend)}: {error}")
                    if isinstance(error, BackendError):
                        break
                    continue
                steps[name] = lambda runner=runner, inputs=inputs: runner.run(inputs)  # type: ignore[misc]
            taken = measure_alternating(steps, runs, warmup=0)
            timings += [
                Timing(backend, name, 1000 * statistics.median(seconds), 1000 * min(seconds), len(seconds))
                for name, seconds in taken.items()
                if seconds
            ]
    return timings, problems


def _told(name: str, gain: float, loss: QualityLoss) -> str:
    lost = "" if loss.worst_db <= _LARGEST_LOSS_DB else f" at the cost of {loss.worst_db:.2f} dB on {loss.worst}"
    return f"{name.upper()} {gain:.2f}x{lost}"


def advise(timings: Sequence[Timing], losses: Mapping[tuple[str, str], QualityLoss]) -> list[Advice]:
    """One piece of advice per backend that timed fp32: the fastest variant if it gains 10 % or more, else fp32.

    ``losses``: (backend, variant) to the measured loss; a variant without one is not recommended, nor is one that loses
    more than ``_LARGEST_LOSS_DB`` on any degradation.
    """
    advice = []
    for backend in dict.fromkeys(timing.backend for timing in timings):
        times = {timing.variant: timing.median_ms for timing in timings if timing.backend == backend}
        if "fp32" not in times:
            continue
        label = _LABELS.get(backend, backend)
        every = {name: times["fp32"] / ms for name, ms in times.items() if (backend, name) in losses}
        gains = {name: gain for name, gain in every.items() if losses[backend, name].worst_db <= _LARGEST_LOSS_DB}
        best = max(gains, key=lambda name: gains[name], default="fp32")
        if not (gains.get(best, 1.0) >= _WORTH):
            told = "; ".join(_told(name, gain, losses[backend, name]) for name, gain in every.items())
            told = told or "nothing else was measured"
            advice.append(Advice(backend, "fp32", 1.0, f"{label} on this machine: no gain ({told}), use fp32"))
            continue
        loss = losses[backend, best]
        sentence = (
            f"{best.upper()} on {label}: {gains[best]:.2f}x faster, PSNR {-loss.mean_db:+.2f} dB on average, "
            f"{-loss.worst_db:+.2f} dB on {loss.worst}"
        )
        advice.append(Advice(backend, best, gains[best], sentence))
    return advice
