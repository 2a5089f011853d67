"""Where a graph's time goes, by the runtimes' own profilers, and how near it is to the machine's convolution peak.

    python -m tests.bench.bounds.profile [NAME.tile.onnx ...] [--rounds 15] [--each 12]

One thread. The share of the peak is of processor time, the peak (a 3x3 convolution of 64 channels on ONNX Runtime) and
the graphs taking turns; the multiply-accumulates are those of the first graph, so that a graph in fewer bits stands
beside it. By kinds of operators, and the ``--each`` dearest ones, each at its fastest turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx

from clusir.export.graph.complexity import count_macs
from tests.bench.bounds.int8 import call, feeds_of, opened
from tests.bench.timing import Call, alternate, ort_call, peak_graph

Profile = dict[tuple[str, str], float]
"""Milliseconds by what ran and which node it is."""


def ort_profile(graph: bytes, feeds: Mapping[str, np.ndarray], turns: int) -> Profile:
    import onnxruntime

    spent = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(turns):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    end = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(end):
            spent[event["args"]["op_name"], event["name"].removesuffix(end)].append(event["dur"] / 1e3)
    return {key: min(times) for key, times in spent.items()}


def openvino_profile(graph: bytes, feeds: Mapping[str, np.ndarray], turns: int) -> Profile:
    """OpenVINO tells means over all turns so far, in whole microseconds: few turns, so that their differences say what
    each took."""
    request, means, spent = opened(graph, feeds, PERF_COUNT="YES"), defaultdict[tuple[str, str], float](float), {}
    for turn in range(1, min(turns, 8) + 1):
        request.infer(dict(feeds))
        for node in request.profiling_info:
            if node.status.name == "EXECUTED":
                key = (f"{node.node_type} ({node.exec_type.removeprefix('jit_')})", node.node_name)
                mean = node.real_time.total_seconds() * 1e3
                took = max(0.0, turn * mean - (turn - 1) * means[key])
                means[key], spent[key] = mean, min(took, spent.get(key, took))
    return spent


PROFILERS = {"ONNX Runtime": ort_profile, "OpenVINO": openvino_profile}


def tell(profile: Profile, each: int) -> None:
    kinds: Counter[str] = Counter()
    for (kind, _), spent in profile.items():
        kinds[kind] += spent  # type: ignore[assignment]
    whole, count = sum(profile.values()), Counter(kind for kind, _ in profile)
    print(f"{whole:.1f} ms in all\n\n| operators | ms | share | nodes |\n|---|---:|---:|---:|")
    for kind, spent in kinds.most_common():
        if spent / whole >= 0.005:
            print(f"| {kind} | {spent:.2f} | {spent / whole:.1%} | {count[kind]} |")
    print("\n| dearest | | ms |\n|---|---|---:|")
    for (kind, name), spent in sorted(profile.items(), key=lambda item: -item[1])[:each]:
        print(f"| {kind} | {name} | {spent:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = Path(str(files("clusir.weights") / "tiny.tile.onnx"))
    parser.add_argument("graphs", type=Path, nargs="*", default=[shipped])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--each", type=int, default=12)
    options = parser.parse_args()
    feeds = feeds_of(options.graphs[0])
    graphs = {path.name: onnx.load(path) for path in options.graphs}
    macs = count_macs(next(iter(graphs.values())))
    print(f"multiply-accumulates, millions: {', '.join(f'{k} {n / 1e6:.0f}' for k, n in macs.most_common())}")
    peak, picture, peak_macs = peak_graph()
    calls: dict[tuple[str, str], Call] = {("the peak", "ONNX Runtime"): ort_call(peak, {"x": picture}, 1)}
    for name, model in graphs.items():
        graph = model.SerializeToString()
        calls[name, "ONNX Runtime"] = ort_call(graph, feeds, 1)
        calls[name, "OpenVINO"] = call(opened(graph, feeds), feeds)
    times = alternate(calls, options.rounds, cpu_clock=True)  # type: ignore[arg-type, type-var]
    print("\n| graph | runtime | ms | share of the peak | by the medians |\n|---|---|---:|---:|---:|")
    best = times["the peak", "ONNX Runtime"]  # type: ignore[index]
    for (name, runtime), spent in times.items():  # type: ignore[misc]
        work = (peak_macs if name == "the peak" else sum(macs.values())) / peak_macs
        shares = f"{work * best.minimum_ms / spent.minimum_ms:.0%} | {work * best.median_ms / spent.median_ms:.0%}"
        print(f"| {name} | {runtime} | {spent.minimum_ms:.1f} | {shares} |")
    for name, model in graphs.items():
        for runtime, profiler in PROFILERS.items():
            print(f"\n{name}, {runtime}: ", end="")
            tell(profiler(model.SerializeToString(), feeds, options.rounds), options.each)


if __name__ == "__main__":
    main()
