"""OpenVINO on the CPU.

OpenVINO chooses bfloat16 by itself on CPUs that have it; parity is promised, so the precision hint is float32 (INT8
graphs keep their integer kernels under it) unless bfloat16 is asked for. Compiled models are cached, which halves the
start.

With an open batch axis OpenVINO leaves chains of element-wise operators unfused. A graph of one static size is compiled
for a batch of 1 therefore, which is what the CPU runs, and once more with the axis open when another batch comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clusir.errors import BackendError, ClusirError, ModelFormatError
from clusir.names import INPUTS, OUTPUTS, install_line
from clusir.runtimes.machine.allowed import thread_limit
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.cache import cache_dir
from clusir.runtimes.runners.feeds import check_feeds
from clusir.runtimes.runners.quiet import import_openvino
from clusir.spec import ModelSpec

__all__ = ["OpenVinoRunner", "require_bfloat16"]


class OpenVinoRunner:
    """A model (``.onnx``, or ``.xml`` with its ``.bin``) opened with OpenVINO on the CPU.

    ``device`` is ``cpu`` or ``auto``; ``threads`` None lets OpenVINO choose. ``bf16`` computes a float32 file in
    bfloat16. Raises BackendError for another device, where OpenVINO is not installed, or where the processor has no
    bfloat16; ModelFormatError where OpenVINO cannot read the file.
    """

    def __init__(
        self, path: str | Path, device: str = "auto", threads: int | None = None, *, bf16: bool = False
    ) -> None:
        try:
            ov = import_openvino()
        except ImportError as error:
            raise BackendError(
                f"backend openvino: openvino cannot be imported ({error}); install it with: {install_line('openvino')}"
            ) from error
        if device not in ("auto", "cpu"):
            raise BackendError(
                f"device {device}: backend openvino runs on the CPU here; use --device cpu, or --backend ort for CUDA"
            )
        self._path = Path(path)
        self.name = "openvino:cpu"
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "EXECUTION_MODE_HINT": "PERFORMANCE" if bf16 else "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
        }
        threads = threads or thread_limit()
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        cache = cache_dir("openvino")
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        try:
            core = ov.Core()
            if bf16:
                require_bfloat16(core)
            if self._path.suffix == ".xml":
                model = core.read_model(str(self._path))
                self.spec = ModelSpec.from_metadata(_rt_metadata(model))
            else:
                from clusir.runtimes.runners.metadata import read_metadata

                self.spec = ModelSpec.from_metadata(read_metadata(self._path))
                model = core.read_model(str(self._path))
            single = _takes_one(self.spec, model)
            general = model.clone() if single else model
            if single:
                _close_batch(model)
            self._compiled: Any = core.compile_model(model, "CPU", config)
        except ClusirError:
            raise
        except Exception as error:
            raise ModelFormatError(f"model {self._path}: openvino refuses it ({_last_line(error)})") from error
        self._inputs = {_input_name(p, self.spec): [_length(d) for d in p.partial_shape] for p in general.inputs}
        self._outputs = [_output_name(p, self.spec) for p in self._compiled.outputs]
        self._request: Any = self._compiled.create_infer_request()
        self._general: Any = None if single else self._request
        self._make_general: Any = lambda: core.compile_model(general, "CPU", config).create_infer_request()
        self._make_fixed: Any = lambda size: core.compile_model(
            _of_size(general, self.spec, size), "CPU", config
        ).create_infer_request()
        self._fixed: dict[tuple[int, int], Any] = {}
        self._expected: tuple[int, int] | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see :class:`clusir.runtimes.runners.base.Runner`. Raises ClusirError where the runtime fails."""
        ready = check_feeds(feeds, self._inputs, self.name, self.spec)
        try:
            # share_inputs saves a copy; outputs are copied because the request reuses their memory.
            results = self._request_for(ready).infer(ready, share_inputs=True, share_outputs=False)
        except Exception as error:
            raise ClusirError(f"{self.name} failed on {self._path.name}: {_last_line(error)}") from error
        return {n: np.array(results[i], dtype=np.float32) for i, n in enumerate(self._outputs)}

    def expect(self, size: tuple[int, int] | None) -> None:
        """See :class:`clusir.runtimes.runners.base.Runner`."""
        shape = self._inputs.get(self.spec.input_name, [])
        self._expected = None
        if size is None or len(shape) != 4 or None not in shape[2:]:
            return
        self._expected = size
        if size not in self._fixed:
            self._fixed.clear()  # one size at a time: each holds the weights once more
            self._fixed[size] = self._make_fixed(size)

    def _request_for(self, feeds: Mapping[str, Array]) -> Any:
        if all(len(array) == 1 for array in feeds.values()):
            if self._expected is not None and feeds[self.spec.input_name].shape[2:] == self._expected:
                return self._fixed[self._expected]
            return self._request
        if self._general is None:
            self._general = self._make_general()
        return self._general

    def placement(self) -> dict[str, int]:
        """``{"CPU": n}``: the nodes of the compiled graph, after OpenVINO's own fusions."""
        counts: Counter[str] = Counter()
        for op in self._compiled.get_runtime_model().get_ops():
            kind = op.get_rt_info()["layerType"].astype(str) if "layerType" in op.get_rt_info() else ""
            if kind not in ("Input", "Output", "Const", "Constant"):
                counts["CPU"] += 1
        return dict(counts)

    def takes_batches(self) -> bool:
        shape = [*self._inputs.get(self.spec.input_name, ()), None]
        return not isinstance(shape[0], int)

    def close(self) -> None:
        self._request = self._general = self._make_general = self._make_fixed = self._expected = None
        self._fixed.clear()
        self._compiled = None

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_bfloat16(core: Any) -> None:
    """Raises BackendError where the processor that ``core`` (``openvino.Core``) computes on has no bfloat16."""
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("precision bf16: this processor has no bfloat16 instructions; use --precision fp32")


def _length(dimension: Any) -> int | None:
    return int(dimension.get_length()) if dimension.is_static else None


def _takes_one(spec: ModelSpec, model: Any) -> bool:
    """Whether the first axis alone of every input, but for numbers, has no fixed length; a router takes all its looks
    at once."""
    shapes = [port.partial_shape for port in model.inputs if _input_name(port, spec) not in spec.numbers]
    alone = all(s.rank.is_static and s[0].is_dynamic and all(d.is_static for d in list(s)[1:]) for s in shapes)
    return spec.graph != "router" and alone


def _of_size(model: Any, spec: ModelSpec, size: tuple[int, int]) -> Any:
    """A copy for single pictures of ``size``."""
    from openvino import PartialShape

    fixed = model.clone()
    for port, parameter in zip(fixed.inputs, fixed.get_parameters(), strict=True):
        shape = [1, *list(parameter.get_partial_shape())[1:]]
        if _input_name(port, spec) == spec.input_name:
            shape[2:] = size
        parameter.set_partial_shape(PartialShape(shape))
    fixed.validate_nodes_and_infer_types()
    return fixed


def _close_batch(model: Any) -> None:
    """Give every input a batch of 1, in place. ``Model.reshape`` would fold the integers of an INT8 file into floats,
    and with them its integer kernels."""
    from openvino import PartialShape

    for parameter in model.get_parameters():
        parameter.set_partial_shape(PartialShape([1, *list(parameter.get_partial_shape())[1:]]))
    model.validate_nodes_and_infer_types()


def _input_name(port: Any, spec: ModelSpec) -> str:
    """An input's name in the ONNX file: a float16 graph's cast behind it lends it a second one."""
    names = port.get_names()
    known = (name for name in (spec.input_name, *INPUTS[1:], *spec.numbers) if name in names)
    return next(known, str(port.any_name))


def _output_name(port: Any, spec: ModelSpec) -> str:
    """An output's name in the ONNX file: fusing an Identity leaves a tensor with the names of both its ends."""
    names = port.get_names()
    for known in (spec.output_name, *OUTPUTS):
        if known in names:
            return known
    return str(port.get_node().get_friendly_name().removesuffix("/sink_port_0"))


def _rt_metadata(model: Any) -> dict[str, str]:
    """ONNX metadata_props, which OpenVINO carries through conversion as ``framework`` runtime information."""
    if not model.has_rt_info(["framework"]):
        return {}
    return {str(key): str(value.value) for key, value in model.rt_info["framework"].items()}


def _last_line(error: BaseException) -> str:
    """OpenVINO puts the reason last, behind the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
