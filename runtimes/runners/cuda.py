"""What ONNX Runtime needs for CUDA: provider options, bound tensors and CUDA graphs, and proof of where nodes ran.

ONNX Runtime puts a node that CUDA cannot run on the CPU, with copies both ways, and says so nowhere. That is right for
shape arithmetic, a few integers that the host needs anyway, and wrong for the network's own tensors.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clusir.errors import BackendError
from clusir.runtimes.runners.base import Array

__all__ = [
    "CPU",
    "CUDA",
    "BoundSession",
    "NodeReport",
    "cuda_options",
    "open_session",
    "profile_nodes",
    "refuse_cpu_operators",
    "start_cuda",
]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

# Operators that compute shapes and indices. Only these may be placed on the CPU; whether they touched no more than
# shapes is what profile_nodes tells.
_SHAPE_OPERATORS = frozenset((
    "Shape", "Size", "Gather", "GatherElements", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Cast",
    "Identity", "Constant", "ConstantOfShape", "Expand", "Range", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs",
    "Floor", "Ceil", "Min", "Max", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not",
    "Where", "ReduceProd", "ReduceMin", "ReduceMax", "ReduceSum", "If", "Loop", "Split", "Transpose", "Tile",
    "ScatterElements", "ScatterND", "NonZero",
))  # fmt: skip
# A float tensor of at least this many elements is the network's own: the largest shape vectors have 8.
_TENSOR_ELEMENTS = 64


def cuda_options(static: bool, allow_tf32: bool = False, cuda_graph: bool = False) -> dict[str, str]:
    """Options of the CUDA provider. ``static``: every input has one shape.

    TF32 rounds the inputs of products to 10 bits of mantissa, so it is off unless asked for. An exhaustive search for
    convolution kernels pays once for one shape, and again for every new one. A CUDA graph replays a whole run with one
    launch, and needs one shape and fixed addresses (see :class:`BoundSession`).
    """
    return {
        "use_tf32": "1" if allow_tf32 else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE" if static else "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1" if cuda_graph and static else "0",
    }


def start_cuda(ort: Any) -> None:
    """What ONNX Runtime's module ``ort`` needs before a session on CUDA: the libraries of the nvidia-* wheels, where
    those are installed, and silence about plans that cuDNN tried in vain.

    Looking for the fastest convolution, ONNX Runtime logs every plan that cuDNN does not support as an error, a hundred
    lines for one model [1.31.1 on an H200], and goes on to one that it does. The logger is its global one; real
    failures are exceptions.
    """
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls(directory="")
    ort.set_default_logger_severity(4)


def open_session(
    path: Path, device: str, *, static: bool, allow_tf32: bool = False, cuda_graph: bool = False, profile: str = ""
) -> Any:
    """An ``InferenceSession`` on ``cpu`` or ``cuda``, without fallback. Raises BackendError where CUDA does not start.

    ``profile`` is a file prefix; empty for none.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers: list[Any] = [CPU]
    if device == "cuda":
        start_cuda(ort)
        providers.insert(0, (CUDA, cuda_options(static, allow_tf32, cuda_graph)))
    session = ort.InferenceSession(str(path), options, providers=providers)
    if device == "cuda" and CUDA not in session.get_providers():
        raise BackendError(
            f"device cuda: onnxruntime {ort.__version__} could not start its CUDA provider; see clusir-doctor"
        )
    session.disable_fallback()
    return session


def assigned_operators(session: Any) -> dict[str, Counter[str]]:
    """Execution provider to operator types and their number, as assigned when the session was opened.

    Empty for an onnxruntime that does not record it (before 1.24).
    """
    found: dict[str, Counter[str]] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def refuse_cpu_operators(session: Any, path: Path) -> None:
    """Raise BackendError naming operators of ``session`` that were placed on the CPU and are no shape arithmetic."""
    fallen = {op: n for op, n in assigned_operators(session).get(CPU, {}).items() if op not in _SHAPE_OPERATORS}
    if fallen:
        names = ", ".join(f"{count} {op}" for op, count in sorted(fallen.items()))
        raise BackendError(
            f"device cuda: {names} of {path.name} would run on the CPU, as CUDA has no kernel for them; "
            "export without --dft op, or use --device cpu or --fallback"
        )


class BoundSession:
    """A session whose inputs and outputs stay on the device: one shape, fixed addresses, hence fit for CUDA graphs.

    ``feeds`` gives the shapes and first values (float32). :meth:`run` does a whole run and waits for it; :meth:`read`
    copies the outputs to the host. Raises BackendError for a session with CUDA graphs whose outputs' shapes do not
    follow from its inputs': its very first run is the one that is recorded, with the addresses that it has.
    """

    def __init__(self, session: Any, feeds: Mapping[str, Array], device: str) -> None:
        import onnxruntime as ort

        self._session, self._device = session, device
        self._binding = session.io_binding()
        self._inputs = {k: ort.OrtValue.ortvalue_from_numpy(v, device, 0) for k, v in feeds.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)
            for name, (shape, kind) in _outputs_of(session, feeds).items()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def write(self, feeds: Mapping[str, Array]) -> None:
        """New values for the inputs, into the same memory; shapes as before."""
        for name, array in feeds.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def run(self) -> None:
        """Run once on what the inputs hold, and wait until the outputs are there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def read(self) -> dict[str, Array]:
        """The outputs, copied to the host."""
        return {k: np.asarray(v.numpy(), dtype=np.float32) for k, v in self._outputs.items()}


_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _outputs_of(session: Any, feeds: Mapping[str, Array]) -> dict[str, tuple[list[int], Any]]:
    """Shape and dtype of every output for these inputs: as the graph declares them, else from a plain run."""
    known = {
        symbol: length
        for given in session.get_inputs()
        for symbol, length in zip(given.shape, feeds[given.name].shape, strict=True)
        if isinstance(symbol, str)
    }
    declared: dict[str, tuple[list[Any], Any]] = {
        out.name: ([known.get(axis, axis) for axis in out.shape], _KINDS.get(out.type)) for out in session.get_outputs()
    }
    if all(kind and all(isinstance(n, int) for n in shape) for shape, kind in declared.values()):
        return declared
    if session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") == "1":
        raise BackendError("a CUDA graph needs outputs whose shapes follow from the inputs'; export with a static tile")
    first = session.run(None, dict(feeds))
    return {name: (list(array.shape), array.dtype) for name, array in zip(declared, first, strict=True)}


@dataclass(frozen=True)
class NodeReport:
    """Where the nodes of one run really ran. ``tensor_on_cpu``: operator types that handled the network's tensors on
    the CPU, with their number; ``copies``: memory copies between host and device inside the graph."""

    nodes: dict[str, int]
    tensor_on_cpu: dict[str, int] = field(default_factory=dict)
    copies: int = 0

    def share(self, provider: str = CUDA) -> float:
        """Part of the nodes that ran on ``provider``, 0 to 1."""
        return self.nodes.get(provider, 0) / max(1, sum(self.nodes.values()))


def profile_nodes(path: Path, device: str, feeds: Mapping[str, Array], *, static: bool) -> NodeReport:
    """Run ``path`` once with ONNX Runtime's profiler and count nodes per execution provider, branches included."""
    with tempfile.TemporaryDirectory(prefix="clusir-profile-") as folder:
        session = open_session(path, device, static=static, profile=str(Path(folder) / "run"))
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    return read_profile(events)


def read_profile(events: list[dict[str, Any]]) -> NodeReport:
    """The :class:`NodeReport` of a profile (ONNX Runtime's JSON, parsed)."""
    nodes: Counter[str] = Counter()
    fallen: Counter[str] = Counter()
    copies = 0
    for event in events:
        if event.get("cat") != "Node" or not event.get("name", "").endswith("_kernel_time"):
            continue
        args = event["args"]
        provider, op = args.get("provider", ""), args.get("op_name", "")
        if op in ("MemcpyToHost", "MemcpyFromHost"):
            copies += 1
            continue
        nodes[provider] += 1
        if provider == CPU and op not in ("If", "Loop") and _touches_tensors(args):
            fallen[op] += 1
    return NodeReport(dict(nodes), dict(fallen), copies)


def _touches_tensors(args: Mapping[str, Any]) -> bool:
    for described in (*args.get("output_type_shape", ()), *args.get("input_type_shape", ())):
        for kind, shape in described.items():
            if (
                kind in ("float", "float16", "uint8", "int8")
                and int(np.prod(shape, dtype=np.int64)) >= _TENSOR_ELEMENTS
            ):
                return True
    return False
