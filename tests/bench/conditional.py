"""What the branches buy: ``python tests/bench/conditional.py [WIDTH SIZE]`` prints one line a runtime.

One block of four ClusIR experts (kernels 3 to 9, ranks from an eighth of the width to all of it), top-1, batch 1,
float32. The forms run in turn in one process; a figure is the mean over the four routes of the fastest repetition.
``gathered`` picks the chosen expert's weights, padded to the largest rank and kernel, and runs one convolution with
them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.experts.conditional import BranchExperts
from clusir.export.experts.dense import MergedExperts, SeparateExperts
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import write_onnx
from clusir.network.experts import SparseExperts

KERNELS = (3, 5, 7, 9)


class Gathered(nn.Module):
    """The chosen expert's weights by index; right for one sample and one expert."""

    def __init__(self, sparse: SparseExperts) -> None:
        super().__init__()
        experts = list(sparse.experts)
        rank = max(e.enter.out_channels for e in experts)

        def stack(name: str) -> nn.Parameter:
            weights = [getattr(e, name).weight for e in experts]
            shape = [max(w.shape[d] for w in weights) for d in range(4)]
            padded = []
            for w in weights:
                edge = (shape[3] - w.shape[3]) // 2
                padded.append(F.pad(w, (edge, edge, edge, edge, 0, shape[1] - w.shape[1], 0, shape[0] - w.shape[0])))
            return nn.Parameter(torch.stack(padded).detach())

        self.rank = rank
        self.enter, self.modulate, self.body, self.leave = (
            stack(name) for name in ("enter", "modulate", "body", "leave")
        )

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        at = gate.sum(0).argmax(0, keepdim=True)
        enter, modulate, body, leave = (
            w.index_select(0, at).squeeze(0) for w in (self.enter, self.modulate, self.body, self.leave)
        )
        hidden = F.conv2d(F.conv2d(u, enter), body, padding=body.shape[-1] // 2, groups=self.rank)
        hidden = hidden * F.silu(F.conv2d(shared, modulate))
        return gate.sum(1).reshape(-1, 1, 1, 1) * (u + F.conv2d(hidden, leave))


class Nothing(nn.Module):
    """Stands where experts would: what a graph of it takes is not the experts' time."""

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        return gate.sum(1).reshape(-1, 1, 1, 1) * u + shared


class Block(nn.Module):
    """The experts between convolutions, as in the network: layouts change where they would there."""

    def __init__(self, experts: nn.Module, around: list[nn.Conv2d]) -> None:
        super().__init__()
        self.experts = experts
        self.before, self.side, self.behind = around

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        u = torch.relu(self.before(u))
        return torch.relu(self.behind(self.experts(u, self.side(u), gate)))


def main(width: int, size: int, repetitions: int = 40, threads: int = 2) -> None:
    torch.manual_seed(0)
    base = SparseExperts(width, (width // 8, width // 4, width // 2, width), KERNELS).eval()
    graphs: dict[str, onnx.ModelProto] = {}
    around = [nn.Conv2d(width, width, 1) for _ in range(3)]
    forms = {"separate": SeparateExperts(base), "merged": MergedExperts(base), "gathered": Gathered(base)}
    for name, experts in {**forms, "nothing": Nothing()}.items():
        module = Block(experts, around).eval()
        example = (torch.rand(2, width, size, size), torch.eye(4)[:2])
        graphs[name] = (
            SimplifyGraph().apply(write_onnx(module, example, ("u", "gate"), ("y",), dynamic_size=False)).model
        )
    step = BranchExperts().apply(graphs["separate"])
    graphs["conditional"] = step.model
    print(step.notes[0])

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in graphs.items():
            path = Path(folder) / f"{name}.onnx"
            onnx.save_model(graph, str(path))
            session = ort.InferenceSession(str(path), options)
            runs["ort", name] = lambda feeds, session=session: session.run(None, feeds)[0]
            config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            model = ov.Core().read_model(str(path))
            model.reshape({0: [1, width, size, size], 1: [1, 4]})
            compiled = ov.Core().compile_model(model, "CPU", config)
            runs["openvino", name] = lambda feeds, compiled=compiled: compiled(feeds)[0]
        u = np.random.default_rng(0).standard_normal((1, width, size, size)).astype(np.float32)
        best = {}
        for _ in range(repetitions):
            for expert in range(4):
                feeds = {"u": u, "gate": 0.7 * np.eye(4, dtype=np.float32)[[expert]]}
                want = runs["ort", "separate"](feeds)
                for key, run in runs.items():
                    time.sleep(0.01)  # the threads of the runtime before it spin for a while
                    run(feeds)
                    start = time.perf_counter()
                    got = run(feeds)
                    seconds = time.perf_counter() - start
                    best[key, expert] = min(seconds, best.get((key, expert), 9.0))
                    assert key[1] == "nothing" or np.abs(got - want).max() < 1e-4, key
    for backend in ("ort", "openvino"):
        mean = {name: sum(best[(backend, name), e] for e in range(4)) * 250 for name in graphs}
        rest = mean.pop("nothing")
        mean = {name: ms - rest for name, ms in mean.items()}
        shown = ", ".join(f"{n} {ms:.3f} ms ({ms / mean['separate']:.2f}x)" for n, ms in mean.items())
        merged = mean["conditional"] / mean["merged"]
        print(f"{width}x{size}x{size} {backend}: {shown}; conditional / merged {merged:.2f}x")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    main(*(numbers or (48, 64)), threads=int(os.environ.get("THREADS", "2")))
