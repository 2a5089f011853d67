"""What each graph pass gains: the graph without it beside the graph with all of them, in turns in one process.

``python -m tests.bench.graphs --ablate`` prints the table of docs/lowering.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch

from clusir.export.passes.order import fusing_passes
from tests.bench.pages.written import densified, fused, lowered_graph, network
from tests.bench.timing import RUNTIMES, alternate

__all__ = ["Ablation", "ablate", "ablation_table"]

_ALL, _AGAIN = "all passes", "all passes, opened again"


@dataclass(frozen=True)
class Ablation:
    """One network: for each runtime, the milliseconds with all passes and the factor without each pass that changes
    this network. ``noise`` is the factor between two sessions of one and the same graph."""

    network: str
    milliseconds: dict[str, float]
    noise: dict[str, float]
    factors: dict[str, dict[str, float]]


def ablate(name: str, size: int, runs: int, threads: int, cpu_clock: bool) -> Ablation:
    """Measure every pass on one network of the benchmark page at ``size`` x ``size``; best of ``runs`` turns."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    lowered = lowered_graph(name, densified(name, network(name)), image)
    written = _without_each(lowered)
    result = Ablation(name, {}, {}, {})
    for runtime, opener in RUNTIMES.items():
        feeds = {"image": image.numpy()}
        times = alternate({what: opener(graph, feeds, threads) for what, graph in written.items()}, runs, cpu_clock)
        base = min(times[_ALL].minimum_ms, times[_AGAIN].minimum_ms)
        result.milliseconds[runtime] = base
        result.noise[runtime] = max(times[_ALL].minimum_ms, times[_AGAIN].minimum_ms) / base
        result.factors[runtime] = {what: t.minimum_ms / base for what, t in times.items() if what not in (_ALL, _AGAIN)}
    return result


def _without_each(lowered: onnx.ModelProto) -> dict[str, bytes]:
    """The graph behind all passes, twice, and behind all but each one that changes it. What comes before a pass is
    computed once."""
    steps, before, left = fusing_passes(), lowered, {}
    for number, step in enumerate(steps):
        after = fused(before, [step])
        if after is not before:
            left[step.name] = (before, steps[number + 1 :])
        before = after
    whole = before.SerializeToString()
    shorter = {name: fused(graph, rest).SerializeToString() for name, (graph, rest) in left.items()}
    return {_ALL: whole, _AGAIN: whole, **shorter}


def ablation_table(results: Sequence[Ablation]) -> str:
    """Markdown: a line for each pass, a column for each network and runtime; empty where a pass changes nothing."""
    columns = [(r, runtime) for r in results for runtime in r.milliseconds]
    lines = [
        "| left out | " + " | ".join(f"`{r.network}`, {runtime}" for r, runtime in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
        "| nothing, ms | " + " | ".join(f"{r.milliseconds[runtime]:.1f}" for r, runtime in columns) + " |",
        "| nothing, opened twice | " + " | ".join(f"{r.noise[runtime]:.3f}" for r, runtime in columns) + " |",
    ]
    for step in fusing_passes():
        factors = [r.factors[runtime].get(step.name) for r, runtime in columns]
        lines.append(f"| `{step.name}` | " + " | ".join("" if f is None else f"{f:.3f}" for f in factors) + " |")
    return "\n".join(lines) + "\n"
