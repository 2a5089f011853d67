"""Times as ratios: contenders take turns in one process, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from clusir.runtimes.machine.alternating import measure_alternating

__all__ = [
    "RUNTIMES",
    "Opener",
    "Time",
    "alternate",
    "compiled_call",
    "convolution_peak",
    "openvino_call",
    "ort_call",
    "peak_graph",
    "torch_call",
]

# The threads of some runtimes spin for a moment after their work; whoever comes next would share a core with them.

Call = Callable[[], object]
Opener = Callable[[bytes, Mapping[str, np.ndarray], int], Callable[[], list[np.ndarray]]]


@dataclass(frozen=True)
class Time:
    """Milliseconds over the turns: the best and the middle one."""

    minimum_ms: float
    median_ms: float


def alternate(contenders: Mapping[str, Call], runs: int, cpu_clock: bool = False) -> dict[str, Time]:
    """Run all contenders in turns, ``runs`` times after one warm-up.

    ``cpu_clock`` counts the processor time of this process instead of time on the wall: with one thread for each
    contender, that stays meaningful on a busy machine.
    """
    timed = {"pause_s": 0.0, "clock": time.process_time} if cpu_clock else {}
    spent = measure_alternating(contenders, runs, **timed)  # type: ignore[arg-type]
    return {name: Time(1e3 * min(t), 1e3 * float(np.median(t))) for name, t in spent.items()}


def ort_call(model: bytes, feeds: Mapping[str, np.ndarray], threads: int) -> Callable[[], list[np.ndarray]]:
    """A closure that runs a serialised model on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin into the next's turn
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, dict(feeds)))


def openvino_call(model: bytes, feeds: Mapping[str, np.ndarray], threads: int) -> Callable[[], list[np.ndarray]]:
    """A closure that runs a serialised model on OpenVINO's CPU plugin in float32, compiled for the sizes of ``feeds``:
    with the batch left open it fuses less (``clusir.runtimes.runners.openvino`` does the same)."""
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    opened = core.read_model(model, b"")
    opened.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = core.compile_model(opened, "CPU", config)
    return lambda: list(compiled(dict(feeds)).values())


RUNTIMES: dict[str, Opener] = {"ONNX Runtime": ort_call, "OpenVINO": openvino_call}


def torch_call(model: nn.Module, image: Tensor, channels_last: bool = False) -> Call:
    """A closure that runs a module on a picture without gradients; ``channels_last`` runs a copy in that layout."""
    if channels_last:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = image.to(memory_format=torch.channels_last)

    def call() -> object:
        with torch.no_grad():
            return model(image)

    return call


def compiled_call(model: nn.Module, image: Tensor, channels_last: bool = False) -> Call:
    """A closure that runs a module through torch.compile with its defaults; compiles at the first call, for minutes
    where Inductor's cache does not know the network. Needs a C++ compiler."""
    if channels_last:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = image.to(memory_format=torch.channels_last)
    return torch_call(torch.compile(model), image)  # type: ignore[arg-type]


def peak_graph() -> tuple[bytes, np.ndarray, int]:
    """The graph that stands for the convolution peak, two 3x3 convolutions from 64 to 64 channels, its picture x, and
    its multiply-accumulates."""
    from onnx import TensorProto, helper, numpy_helper

    size, width = 128, 64
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((width, width, 3, 3), dtype=np.float32), "w")
    shape = [1, width, size, size]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = rng.standard_normal(shape, dtype=np.float32)
    return model.SerializeToString(), x, 2 * width * width * 9 * size * size


def convolution_peak(threads: int, runs: int = 10, cpu_clock: bool = False) -> float:
    """The machine's convolution peak in GFLOP/s: the best turn of a 64 -> 64, 3x3 convolution on ONNX Runtime."""
    model, x, macs = peak_graph()
    best = alternate({"peak": ort_call(model, {"x": x}, threads)}, runs, cpu_clock)["peak"].minimum_ms
    return 2 * macs / best / 1e6
