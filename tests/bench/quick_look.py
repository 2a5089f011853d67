"""``python -m tests.bench.quick_look net:factory --input 1x3x64x64 --sizes 40x56,88x72``: is a network traced, written
with all passes, and right on both runtimes for a batch of two at sizes that no trace has seen?

A look at a network in a quarter of the time of an export, which finds tiles and validates besides. Seconds are
processor time of the process until then. Differences are the largest against PyTorch, picture by picture.
"""

from __future__ import annotations

import argparse
import time

import torch

from clusir.export.base import Pipeline
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import CheckStandard, SimplifyGraph
from clusir.export.scans.mamba import mamba_importable
from clusir.export.subject import read_subject
from clusir.export.subjects.factory import load_factory, parse_input, working_folder_first
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.sizes import accepted_multiple, trace_sizes
from clusir.export.subjects.user_code import count_in
from clusir.export.trace.deformable import mmcv_importable
from clusir.export.trace.program import UntraceableError, trace_module
from clusir.export.trace.writer import write_program
from clusir.export.validate.cases import probes
from tests.bench.scans.__main__ import on


def say(what: str) -> None:
    print(f"{time.process_time():6.1f} s  {what}", flush=True)


def look(factory: str, shape: tuple[int, int, int, int], sizes: list[tuple[int, int]], again: bool) -> None:
    model = load_factory(factory)
    count_in(model)
    fresh = Fresh(model)
    subject = read_subject(factory, fresh, shape, None, say)
    taken = accepted_multiple(subject.takes, *shape[2:])
    multiple = taken and taken.multiple
    say(f"takes multiples of {multiple}" if multiple else "takes one size")
    for height, width in list(trace_sizes(subject.dense, taken))[again:] if taken else [shape[2:]]:
        pictures = probes(2, shape[1], height, width)
        try:
            traced = trace_module(
                subject.unrun(), pictures, sizes=bool(multiple), multiple=multiple or 1, before=fresh.restore
            )
            break
        except UntraceableError as error:
            say(f"given up at {height}x{width}: {error}")
    else:
        return
    say(f"traced at {height}x{width}, {len(traced.program.graph.nodes)} nodes")
    graph, _ = write_program(traced)
    graph = Pipeline([SimplifyGraph(), *fusing_passes(), CheckStandard(allow_dft=False)]).run(graph)
    say(f"written, {len(graph.graph.node)} nodes")
    runs = {backend: on(backend, graph) for backend in ("ort", "openvino")}
    for size in sizes:
        images = probes(2, shape[1], *size)
        with torch.no_grad():
            want = torch.cat([subject.user(image[None]) for image in images])
        found = {name: float((torch.from_numpy(run(images.numpy())) - want).abs().max()) for name, run in runs.items()}
        say(f"{size[0]}x{size[1]}: " + ", ".join(f"{name} {off:.1e}" for name, off in found.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("factory")
    parser.add_argument("--input", default="1x3x64x64")
    parser.add_argument("--sizes", default="40x56,88x72")
    parser.add_argument("--again", action="store_true", help="trace at the second size, multiples of 64")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with working_folder_first(), mamba_importable(), mmcv_importable():
        pairs = [(int(h), int(w)) for h, w in (size.split("x") for size in given.sizes.split(","))]
        look(given.factory, parse_input(given.input), pairs, given.again)
