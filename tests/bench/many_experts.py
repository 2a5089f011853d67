"""Networks with many small experts: ``python -m tests.bench.many_experts [EXPERTS [SIZE]]`` prints a row a runtime.

Two blocks of EXPERTS experts (16 channels: 1x1, 3x3 depthwise, 1x1), top-1, one picture of SIZE, float32, one thread.
PyTorch in eager mode runs the chosen expert alone. All take turns in one process; a figure is the least processor time
of nine turns, over four pictures, beside eager's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.experts.conditional import BranchExperts
from clusir.export.experts.registry import DensifyRegistered, as_form, register_moe, top_k_gate
from clusir.export.fastest import ROUTERS
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, SimplifyGraph
from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from clusir.runtimes import open_runner
from clusir.runtimes.machine.alternating import measure_alternating
from clusir.spec import ModelSpec, SizeRequirements

DIM = 16


class Routed(nn.Module):
    """The one expert that the router chose, sample by sample."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        half = DIM // 2
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(DIM, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.GELU(), nn.Conv2d(half, DIM, 1)
            )
            for _ in range(experts)
        )
        self.router = nn.Linear(DIM, experts)

    def scores(self, x: Tensor) -> Tensor:
        return (8 * self.router(x.mean((2, 3)))).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        share, which = self.scores(x).topk(1, 1)
        rows = [share[n] * self.experts[int(which[n])](x[n : n + 1]) for n in range(x.shape[0])]
        return torch.relu(x + torch.cat(rows))


def graphs(model: nn.Module, picture: Tensor) -> dict[str, onnx.ModelProto]:
    """The network in every form, for one picture of that size."""
    dense = DensifyRegistered().apply(model).model
    made = {}
    for router in ROUTERS:
        with as_form(dense, router):
            program = trace_module(dense, picture, batches=False, sizes=False)
        branching = [BranchExperts()] if router == "conditional" else []
        spec = AttachMetadata(ModelSpec(size=SizeRequirements(1, 1)))
        steps = Pipeline([SimplifyGraph(), *fusing_passes(), *branching, spec])
        made[router] = steps.run(write_program(program, "auto")[0])
    return made


def main(experts: int = 30, size: int = 128) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    register_moe(
        Routed,
        experts="experts",
        gate=lambda block, x: top_k_gate(block.scores(x), 1),
        combine=lambda block, mixed, gate, x: torch.relu(x + mixed),
    )
    head, tail = nn.Conv2d(3, DIM, 3, padding=1), nn.Conv2d(DIM, 3, 3, padding=1)
    model = nn.Sequential(head, Routed(experts), Routed(experts), tail).eval()
    pictures = [torch.rand(1, 3, size, size) * level for level in (0.2, 0.5, 1.0, 2.0)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        paths = {}
        for router, graph in graphs(model, pictures[0]).items():
            paths[router] = Path(folder) / f"{router}.onnx"
            onnx.save_model(graph, str(paths[router]))
        for backend in ("ort", "openvino"):
            runners = {router: open_runner(path, backend, "cpu", 1) for router, path in paths.items()}
            turns = {}
            for number, picture in enumerate(pictures):
                want, feeds = model(picture).numpy(), {"image": picture.numpy()}
                turns[f"eager {number}"] = lambda picture=picture: model(picture)
                for router, runner in runners.items():
                    assert np.abs(runner.run(feeds)["restored"] - want).max() < 1e-4, (backend, router)
                    turns[f"{router} {number}"] = lambda runner=runner, feeds=feeds: runner.run(feeds)
            times = measure_alternating(turns, 9, pause_s=0.0, clock=time.process_time)
            total = {r: sum(min(times[f"{r} {n}"]) for n in range(len(pictures))) for r in ("eager", *runners)}
            shown = ", ".join(f"{r} {seconds / total['eager']:.2f}" for r, seconds in total.items())
            print(
                f"{experts} experts, {size}x{size}, {backend}: {shown} (eager {250 * total['eager']:.2f} ms)",
                flush=True,
            )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
