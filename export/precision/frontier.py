"""Quality against size and time: a decibel budget kept by putting layers back to float, best trade first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clusir.errors import ExportError
from clusir.export.precision.loss import QualityLoss
from clusir.export.precision.sensitivity import Deadline, Journal, Measure, Sensitivity, measure_sensitivity
from clusir.export.quantize.steps import Quantizer

__all__ = ["BudgetConfig", "Frontier", "Point", "search_budget"]


@dataclass(frozen=True)
class BudgetConfig:
    """``max_drop_db``: what the worst degradation may lose in dB; ``mean_drop_db``: the mean. None: not bounded.

    ``min_int8_share``: below this share of the multiply-accumulates in INT8 the result is no INT8 model any more, and
    the budget counts as not met. ``time_limit_s`` bounds the search. ``refine``: split the worst blocks into layers.
    """

    max_drop_db: float | None = None
    mean_drop_db: float | None = None
    min_int8_share: float = 0.25
    time_limit_s: float | None = None
    refine: bool = True

    def __post_init__(self) -> None:
        for name in ("max_drop_db", "mean_drop_db", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ExportError(f"{name} {value} is not a number of at least 0")
        if not 0 <= self.min_int8_share <= 1:
            raise ExportError(f"min_int8_share {self.min_int8_share} is not a number from 0 to 1")

    def holds(self, loss: QualityLoss) -> bool:
        return (self.max_drop_db is None or loss.worst_db <= self.max_drop_db) and (
            self.mean_drop_db is None or loss.mean_db <= self.mean_drop_db
        )


@dataclass(frozen=True)
class Point:
    """One variant. ``int8_share`` of the multiply-accumulates."""

    name: str
    float_layers: tuple[str, ...]
    loss: QualityLoss
    bytes: int
    int8_share: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "float_layers": list(self.float_layers), "loss": self.loss.to_json(),
            "bytes": self.bytes, "int8_share": self.int8_share,
        }  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """All variants that were measured, in the order of the search, and the one to keep."""

    points: tuple[Point, ...]
    chosen: int
    met: bool
    stopped: str = ""
    sensitivity: tuple[Sensitivity, ...] = ()

    @property
    def best(self) -> Point:
        return self.points[self.chosen]

    def to_json(self) -> dict[str, Any]:
        return {
            "points": [point.to_json() for point in self.points], "chosen": self.chosen, "met": self.met,
            "stopped": self.stopped, "sensitivity": [entry.to_json() for entry in self.sensitivity],
        }  # fmt: skip

    def to_markdown(self) -> str:
        """The frontier as a table (the chosen row in bold), then the blocks that hurt most."""
        head = ["variant", "layers in float", "INT8 MACs", "mean drop dB", "worst drop dB", "worst on", "MB"]
        lines = ["| " + " | ".join(head) + " |", "|---|---:|---:|---:|---:|---|---:|"]
        for index, point in enumerate(self.points):
            cells = [
                f"**{point.name}**" if index == self.chosen else point.name,
                str(len(point.float_layers)),
                f"{100 * point.int8_share:.0f} %",
                f"{point.loss.mean_db:.3f}",
                f"{point.loss.worst_db:.3f}",
                point.loss.worst,
                f"{point.bytes / 1e6:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        if self.stopped:
            lines += ["", self.stopped]
        if self.sensitivity:
            lines += ["", "| alone in INT8 | worst drop dB | on | mean drop dB | weights | MACs |"]
            lines.append("|---|---:|---|---:|---:|---:|")
            lines += [
                f"| `{s.name}` | {s.loss.worst_db:.4f} | {s.loss.worst} | {s.loss.mean_db:.4f} | {s.weights} "
                f"| {s.macs} |"
                for s in self.sensitivity
            ]
        return "\n".join(lines)


def search_budget(
    quantizer: Quantizer,
    measure: Measure,
    config: BudgetConfig | None = None,
    journal: Journal | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Frontier:
    """Start with everything in INT8 and put layers back until ``config`` holds, dearest decibel per cost first.

    Cost of a layer: its share of the candidates' multiply-accumulates plus its share of their weights. The result says
    whether the budget was ``met``; the caller decides what to do with the best variant where it was not.
    """
    config, journal, deadline = config or BudgetConfig(), journal or Journal(None, ()), None
    deadline = Deadline(config.time_limit_s)
    candidates = quantizer.candidates
    macs, weights = (max(1, sum(getattr(layer, kind) for layer in candidates)) for kind in ("macs", "weights"))

    def point(name: str, float_layers: set[str]) -> Point:
        quantised = [layer for layer in candidates if layer.name not in float_layers]
        model = quantizer.build(float_layers)
        loss = journal.measure((layer.name for layer in quantised), lambda: measure(model))
        share = sum(layer.macs for layer in quantised) / macs
        progress(f"{name}: mean {loss.mean_db:.3f} dB, worst {loss.worst_db:.3f} dB ({loss.worst})")
        return Point(name, tuple(sorted(float_layers)), loss, model.ByteSize(), share)

    points = [point("all INT8", set())]
    if not candidates:
        why = Counter(layer.keep for layer in quantizer.layers)
        told = ", ".join(f"{reason} ({count})" for reason, count in why.most_common()) or "it has no convolution"
        return Frontier(tuple(points), 0, False, f"No layer of this graph can be in INT8: {told}.")
    if config.holds(points[0].loss):
        return Frontier(tuple(points), 0, True)
    progress("over budget: measuring what each block costs")
    ranking = measure_sensitivity(quantizer, measure, journal, deadline)
    if config.refine:
        ranking = _refine(ranking, quantizer, measure, journal, deadline)

    def trade(entry: Sensitivity) -> float:
        cost: float = entry.macs / macs + entry.weights / weights
        return entry.loss.worst_db / cost

    float_layers: set[str] = set()
    stopped = ""
    for entry in sorted(ranking, key=lambda s: (-trade(s), s.name)):
        if deadline.passed:
            stopped = "Stopped by the time limit; run the same command again to continue the search."
            break
        tried = float_layers | set(entry.layers)
        left = sum(layer.macs for layer in candidates if layer.name not in tried) / macs
        if left < config.min_int8_share:  # a smaller one further down may still do
            stopped = f"Less than {100 * config.min_int8_share:.0f} % of the arithmetic would be left in INT8."
            continue
        float_layers = tried
        points.append(point(f"{entry.name} in float", set(float_layers)))
        if config.holds(points[-1].loss):
            return Frontier(tuple(points), len(points) - 1, True, "", tuple(ranking))
    chosen = min(range(len(points)), key=lambda i: (points[i].loss.worst_db, i))
    return Frontier(tuple(points), chosen, False, stopped or "Every block was tried.", tuple(ranking))


def _refine(
    ranking: list[Sensitivity], quantizer: Quantizer, measure: Measure, journal: Journal, deadline: Deadline
) -> list[Sensitivity]:
    """Replace the blocks that make four fifths of all loss by their layers: often one layer does the harm."""
    total = sum(max(0.0, entry.loss.worst_db) for entry in ranking)
    refined: list[Sensitivity] = []
    covered = 0.0
    for entry in ranking:
        if covered < 0.8 * total and len(entry.layers) > 1 and not deadline.passed:
            covered += max(0.0, entry.loss.worst_db)
            layers = measure_sensitivity(quantizer, measure, journal, deadline, by_block=False, among=entry.layers)
            if len(layers) == len(entry.layers):
                refined += layers
                continue
        refined.append(entry)
    return refined
