"""Files against PyTorch: every graph of an export on every runtime that reads it, over sizes, batches, degradations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from clusir.degrade.recipe import KINDS
from clusir.errors import UsageError
from clusir.export.validate.parity import (
    ParityRow,
    parity_cases,
    permission_vectors,
    reference_outputs,
    run_case,
    uniform_routing,
)
from clusir.export.validate.tolerances import tolerance
from clusir.network.model import ClusIR
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array
from clusir.spec import ModelSpec

__all__ = ["ParityPlan", "validate_files"]

Progress = Callable[[str], None]

# The tile and the router graph are the whole graph's halves: what they could get wrong on their own shows on a few
# kinds.
_SIDE_GRAPH_KINDS = ("noise", "haze", "none")


@dataclass(frozen=True)
class ParityPlan:
    """What an export is checked on: backends by name, sizes (height, width in pixels, used by dynamic graphs; a
    static graph is checked at its own), batches. ``threads`` None lets each runtime choose."""

    backends: tuple[str, ...] = ("ort", "openvino")
    device: str = "cpu"
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 160), (272, 336))
    batches: tuple[int, ...] = (1, 3)
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("backends", "sizes", "batches"):
            if not getattr(self, name):
                raise UsageError(f"no {name} to compare on: a comparison of nothing says nothing")
        if self.device != "cpu" and "openvino" in self.backends:
            raise UsageError(f"device {self.device} with backend openvino, which runs on the CPU here; use backend ort")

    def runtimes(self, path: Path) -> tuple[str, ...]:
        """Those of the backends that read the file, else the one that does: a file is never left uncompared."""
        only = {".xml": "openvino", ".ort": "ort"}.get(path.suffix)
        return self.backends if only is None else (only,)


def validate_files(
    model: ClusIR,
    paths: Sequence[Path],
    plan: ParityPlan,
    progress: Progress = lambda _: None,
    kinds: Sequence[str] | None = None,
) -> list[ParityRow]:
    """Parity of every graph on every backend against PyTorch: every size and batch of the plan, the whole graph
    on all degradations (or ``kinds``). ``.xml`` files run in OpenVINO, ``.ort`` files in ONNX Runtime, one picture at a
    time, whatever the plan says.

    Raises BackendError where a backend is not installed; whether the
    rows are right is for :func:`check_rows`.
    """
    rows: list[ParityRow] = []
    for path in paths:
        with ExitStack() as stack:
            device = plan.device if path.suffix == ".onnx" else "cpu"
            runners = [
                stack.enter_context(open_runner(path, backend, device, plan.threads)) for backend in plan.runtimes(path)
            ]
            progress(f"validating {path.name} on {', '.join(runner.name for runner in runners)}")
            spec = runners[0].spec
            side = spec.size.static_px
            bounds = tolerance(spec.precision, device)
            routing = tile_routing(model, spec) if spec.graph == "tile" else None
            if spec.graph == "router" and spec.families:
                routing = permission_vectors(spec)
            every = kinds or ((*KINDS, "none") if spec.graph == "whole" else _SIDE_GRAPH_KINDS)
            batches = (1,) if path.suffix == ".ort" else plan.batches
            for case in parity_cases(((side, side),) if side else plan.sizes, batches, every):
                feeds = {"image": case.image}
                if routing is not None:
                    feeds |= routing(feeds)
                expected = reference_outputs(model, feeds, spec.graph)
                rows += [run_case(r, feeds, expected, case, bounds, path.name) for r in runners]
    return rows


def tile_routing(model: ClusIR, spec: ModelSpec) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Routing to feed a tile graph with: in fp32 every expert in turn, so that none can be missing; in lower
    precisions what the reference itself decides, since ranges were calibrated on pictures with the experts that
    belong to them."""
    if spec.precision == "fp32":
        return uniform_routing(spec, model)

    def own(feeds: Mapping[str, Array]) -> dict[str, Array]:
        decided = reference_outputs(model, feeds)
        names = ("posterior", "gate", "statistics") if spec.statistics else ("posterior", "gate")
        return {name: decided[name] for name in names}

    return own
