"""Stand-ins of published restorers beside PyTorch and the plain exporter: one picture of 256x256, one thread.

    python -m tests.bench.zoo.stand_ins [--size 256] [--runs 9] [NAME ...]

Every stand-in is traced with open sizes, written with all passes, and compared with PyTorch on each runtime. The plain
exporter is ``torch.onnx.export(model, picture, dynamo=True)`` for that one size, timed where its file runs and is right
to 1e-3. Eager and all files take turns in one process; a figure is the least processor time, beside eager's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.experts.conditional import BranchExperts
from clusir.export.experts.registry import DensifyRegistered, as_form, register_moe, top_k_gate
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, SimplifyGraph
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import quiet_exporter, write_program
from clusir.names import ONNX_BACKENDS
from clusir.runtimes import open_runner
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.spec import ModelSpec, SizeRequirements

sys.path.insert(0, str(Path(__file__).parents[2] / "export"))


ROUTED = "routed Fourier experts (MoCE-IR)"
SCANS = "four scans (VMamba)"
UNROLLED = {SCANS}  # the plain exporter writes every step of a recurrence: 4096 in each of eight


class Within(nn.Module):
    """A function of a map between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.function = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.function(self.enter(x)))


def networks() -> dict[str, Callable[[], nn.Module]]:
    """By name: what makes it."""
    import operators
    import patterns
    import pooled_networks
    import scanning
    import standins
    import windowed

    register_moe(
        standins.RoutedSpectral,
        experts="experts",
        gate=lambda block, x: top_k_gate(block.scores(x), 1),
        combine=lambda block, mixed, gate, x: x + mixed,
    )
    return {
        ROUTED: standins.RoutedRestorer,
        f"{ROUTED}, `--router conditional`": standins.RoutedRestorer,
        "phase of a spectrum": patterns.AmplitudePhase,
        "shifted windows (SwinIR)": windowed.ShiftedWindows,
        SCANS: scanning.scanning_restorer,
        "deformable groups": lambda: Within(operators.offsets_of_groups),
        "kernels of each pixel (KBNet)": lambda: Within(operators.mixed_kernels),
        "attention of channels (Restormer)": pooled_networks.Transposed,
        "instance norms (HINet)": pooled_networks.InstanceNorms,
    }


def plain(model: nn.Module, picture: Tensor, path: Path) -> str:
    """What the plain exporter makes of a model is written to ``path``; why there is nothing, in a word."""
    try:
        with quiet_exporter():
            torch.onnx.export(
                model, (picture,), str(path), dynamo=True, input_names=["image"], output_names=["restored"]
            )
        made = onnx.load(str(path))
        made = AttachMetadata(ModelSpec(size=SizeRequirements(1, 1))).apply(made).model
        path.unlink()
        onnx.save_model(made, str(path))
    except Exception:
        return "no file"
    return ""


def row(name: str, make: Callable[[], nn.Module], size: int, runs: int) -> str:
    torch.manual_seed(0)
    model, picture = make().eval(), torch.rand(1, 3, size, size)
    want, feeds = model(picture).detach().numpy(), {"image": picture.numpy()}
    dense = DensifyRegistered().apply(model).model
    router = "conditional" if "conditional" in name else "dense"
    with as_form(dense, router):
        traced = trace_module(dense, torch.rand(1, 3, 136, 216), batches=router == "dense")
    branching = [BranchExperts()] if router == "conditional" else []
    steps = [SimplifyGraph(), *fusing_passes(), *branching, AttachMetadata(ModelSpec(size=SizeRequirements(1, 1)))]
    graph = Pipeline(steps).run(write_program(traced, "auto")[0])
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "plain.onnx"
        onnx.save_model(graph, str(ours))
        missing = "unrolls" if name in UNROLLED else plain(model, picture, theirs)
        for backend in ONNX_BACKENDS:
            turns: dict[str, Callable[[], object]] = {"eager": lambda: model(picture)}
            why = missing
            for kind, path in (("ours", ours), ("plain", theirs)):
                if kind == "plain" and missing:
                    continue
                try:
                    runner = open_runner(path, backend, "cpu", 1)
                    off = float(np.abs(runner.run(feeds)["restored"] - want).max())
                except Exception:
                    why = "does not run"
                    continue
                if off > 1e-3:
                    why = f"{off:.1g} off"
                    continue
                turns[kind] = lambda runner=runner: runner.run(feeds)
            times = measure_alternating(turns, runs, pause_s=0.0, clock=time.process_time)
            least = {kind: min(seconds) for kind, seconds in times.items()}
            beside = {kind: f"{seconds / least['eager']:.2f}" for kind, seconds in least.items()}
            cells += [beside.get("ours", "wrong"), beside.get("plain", why)]
            cells = [f"{1000 * least['eager']:.0f}", *cells] if len(cells) == 2 else cells
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| stand-in | eager, ms | ONNX Runtime | the plain file | OpenVINO | the plain file |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    with torch.no_grad():
        for name, make in networks().items():
            if not asked.names or any(part in name for part in asked.names):
                print(row(name, make, asked.size, asked.runs), flush=True)


if __name__ == "__main__":
    main()
