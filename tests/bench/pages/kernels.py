"""The time inside kernels, node by node: the fastest of many runs of each, so that a busy machine shows little.

A sum of such minima tells two graphs apart where whole runs do not: whatever else the machine does is hardly ever
between a kernel's start and its end in every one of the runs. It leaves out what the runtime does between kernels.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

__all__ = ["KERNELS", "Kernels", "by_kind", "openvino_kernels", "ort_kernels"]

# Node name -> (kind of kernel, milliseconds).
Kernels = dict[str, tuple[str, float]]
_Profiler = Callable[[bytes, Mapping[str, np.ndarray], int, int], Kernels]


def ort_kernels(model: bytes, feeds: Mapping[str, np.ndarray], threads: int, runs: int) -> Kernels:
    """The fastest of ``runs`` runs of every kernel on ONNX Runtime's CPU provider."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    best: Kernels = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            _keep_best(best, event["name"], event["args"]["op_name"], event["dur"] / 1e3)
    return best


def openvino_kernels(model: bytes, feeds: Mapping[str, np.ndarray], threads: int, runs: int) -> Kernels:
    """The fastest of ``runs`` runs of every kernel on OpenVINO's CPU plugin in float32."""
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    opened = core.read_model(model, b"")
    opened.reshape({name: list(array.shape) for name, array in feeds.items()})
    request = core.compile_model(opened, "CPU", config).create_infer_request()
    best: Kernels = {}
    for _ in range(runs + 1):
        request.infer(dict(feeds))
        for number, node in enumerate(request.get_profiling_info()):
            _keep_best(best, f"{number} {node.node_name}", node.node_type, node.real_time.total_seconds() * 1e3)
    return best


def _keep_best(best: Kernels, name: str, kind: str, spent: float) -> None:
    if name not in best or spent < best[name][1]:
        best[name] = (kind, spent)


KERNELS: dict[str, _Profiler] = {"ONNX Runtime": ort_kernels, "OpenVINO": openvino_kernels}


def by_kind(kernels: Kernels) -> dict[str, float]:
    """Milliseconds of each kind of kernel, the largest first."""
    total: dict[str, float] = defaultdict(float)
    for kind, spent in kernels.values():
        total[kind] += spent
    return dict(sorted(total.items(), key=lambda item: -item[1]))
