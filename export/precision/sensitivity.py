"""Which layers pay for being integers: each one alone in INT8, measured on real degraded pictures; journalled."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from clusir.errors import ExportError
from clusir.export.precision.loss import QualityLoss
from clusir.export.quantize.layers import Layer
from clusir.export.quantize.steps import Quantizer

__all__ = ["Deadline", "Journal", "Sensitivity", "measure_sensitivity"]

Measure = Callable[[ModelProto], QualityLoss]


@dataclass(frozen=True)
class Deadline:
    """A time limit in seconds from its making; ``None`` never passes."""

    limit_s: float | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        return self.limit_s is not None and time.monotonic() - self.start >= self.limit_s


class Journal:
    """Measurements that survive an interruption: a JSON line each, under a key of all that decides the result.

    ``identity`` is for example hashes of the model, of the calibration set, of the evaluation crops, and settings.
    A line that a crash left half written is ignored. ``path`` None keeps everything in memory.
    """

    def __init__(self, path: Path | None, identity: Sequence[str]) -> None:
        self._path, self._identity = path, (*identity, *_versions())
        self._found: dict[str, dict[str, Any]] = {}
        self.hits = 0
        if path is None or not path.is_file():
            return
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"journal {path} cannot be read ({error}); remove it to start over") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry["loss"]
            except (ValueError, KeyError, TypeError):
                continue

    def measure(self, quantised: Iterable[str], measure: Callable[[], QualityLoss]) -> QualityLoss:
        """The loss of the variant in which exactly the layers ``quantised`` are integers: known, or measured now."""
        text = json.dumps([*self._identity, sorted(quantised)])
        key = hashlib.sha256(text.encode()).hexdigest()
        if key in self._found:
            self.hits += 1
            return QualityLoss.from_json(self._found[key])
        loss = measure()
        self._found[key] = loss.to_json()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size
            with self._path.open("a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json.dumps({"key": key, "loss": loss.to_json()}) + "\n")
        return loss


def _versions() -> tuple[str, ...]:
    """What quantises and runs: another version may answer otherwise."""
    import onnxruntime

    import clusir

    return (f"clusir {clusir.__version__}", f"onnxruntime {onnxruntime.__version__}")


@dataclass(frozen=True)
class Sensitivity:
    """The loss of a layer or a block (a group of layers) alone in INT8; its weights and multiply-accumulates."""

    name: str
    layers: tuple[str, ...]
    weights: int
    macs: int
    loss: QualityLoss

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers), "loss": self.loss.to_json()}


def measure_sensitivity(
    quantizer: Quantizer,
    measure: Measure,
    journal: Journal,
    deadline: Deadline | None = None,
    *,
    by_block: bool = True,
    among: Iterable[str] | None = None,
) -> list[Sensitivity]:
    """Each candidate block (or layer) alone in INT8, the one that loses most on its worst degradation first.

    ``among`` restricts to these layers. Blocks not reached before the deadline are left out: those with the most
    multiply-accumulates come first.
    """
    layers = [layer for layer in quantizer.candidates if among is None or layer.name in set(among)]
    everything = {layer.name for layer in quantizer.candidates}
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.block if by_block else layer.name, []).append(layer)
    found = []
    for name, group in sorted(groups.items(), key=lambda item: (-sum(layer.macs for layer in item[1]), item[0])):
        if deadline is not None and deadline.passed:
            break
        names = {layer.name for layer in group}

        def run(names: set[str] = names) -> QualityLoss:
            return measure(quantizer.build(everything - names))

        loss = journal.measure(names, run)
        total = (sum(layer.weights for layer in group), sum(layer.macs for layer in group))
        found.append(Sensitivity(name, tuple(sorted(names)), *total, loss))
    return sorted(found, key=lambda s: (-s.loss.worst_db, s.name))
