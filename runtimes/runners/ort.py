"""ONNX Runtime: the CPU, and CUDA or WebGPU where it was asked for and is really there.

The device that was asked for is the device that runs, or BackendError (exit code 3): ONNX Runtime itself only logs a
warning and continues on the CPU when its CUDA libraries do not load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clusir.errors import BackendError, ClusirError, ModelFormatError, first_line
from clusir.names import INSTALL_GPU, install_line
from clusir.runtimes.machine.threads import set_threads
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.cuda import cuda_options, refuse_cpu_operators, start_cuda
from clusir.runtimes.runners.feeds import check_feeds
from clusir.runtimes.runners.kept import open_kept
from clusir.runtimes.runners.webgpu import refuse_fallen, refuse_wrong, webgpu_device
from clusir.spec import ModelSpec

__all__ = ["OrtRunner"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OrtRunner:
    """A model opened with ONNX Runtime.

    ``device`` is ``cpu``, ``cuda``, ``webgpu``, or ``auto`` (CUDA where it works, otherwise the CPU). ``threads`` is
    the number of threads inside an operator (None: one per core, fewer where a container is given less processor time).
    ``allow_tf32`` lets CUDA convolutions round their inputs to 10 bits of mantissa; it is off because parity is
    promised. Raises BackendError where the device is not there, ModelFormatError where the file is not a model that
    ONNX Runtime accepts.
    """

    def __init__(
        self, path: str | Path, device: str = "auto", threads: int | None = None, *, allow_tf32: bool = False
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError(
                f"backend ort: onnxruntime cannot be imported ({error}); install it with: {install_line('onnxruntime')}"
            ) from error
        self._path = Path(path)
        spec = self._read_spec()
        available = ort.get_available_providers()
        wanted = device
        if device == "auto":
            wanted = "cuda" if _CUDA in available else "cpu"
        if wanted == "cuda":
            if _CUDA not in available:
                raise BackendError(
                    f"device cuda: this onnxruntime {ort.__version__} has only {', '.join(available)}; "
                    f"install CUDA support with: {INSTALL_GPU}, or use --device cpu or --fallback"
                )
            start_cuda(ort)
        elif wanted not in ("cpu", "webgpu"):
            raise BackendError(f"device {device}: backend ort knows auto, cpu, cuda and webgpu")

        static = spec is not None and spec.size.static_px > 0
        session, self._nodes = self._open(ort, wanted, threads, allow_tf32, static=static)
        if wanted == "cuda" and _CUDA not in session.get_providers():
            if device == "cuda":
                raise BackendError(
                    f"device cuda: onnxruntime {ort.__version__} could not start its CUDA provider (driver or CUDA "
                    f"libraries missing), only {', '.join(session.get_providers())}; see clusir-doctor, "
                    "or use --device cpu or --fallback"
                )
            wanted = "cpu"
        if device == "cuda":
            refuse_cpu_operators(session, self._path)
        elif device == "webgpu":
            refuse_fallen(session, self._path)
        session.disable_fallback()
        self.spec = spec or ModelSpec.from_metadata(dict(session.get_modelmeta().custom_metadata_map))
        self._session: Any = session
        self._reopen: Any = lambda lengths: self._open(ort, wanted, threads, allow_tf32, static=True, lengths=lengths)[
            0
        ]
        # A GPU's first answer is held against the processor's.
        judge = None if wanted != "webgpu" else lambda: self._open(ort, "cpu", threads, False, static=True)[0]
        self._judge: Any = judge
        self._fixed: dict[tuple[int, ...], Any] = {}
        self._expected: tuple[int, ...] | None = None
        self.name = f"ort:{wanted}"
        self._inputs = {i.name: i.shape for i in session.get_inputs()}
        self._outputs = [o.name for o in session.get_outputs()]

    def _read_spec(self) -> ModelSpec | None:
        """The spec of an ``.onnx`` file, read before the runtime sees it; None for ``.ort`` (asked of the session)."""
        if self._path.suffix == ".ort":
            return None
        from clusir.runtimes.runners.metadata import read_metadata

        return ModelSpec.from_metadata(read_metadata(self._path))

    def _open(
        self,
        ort: Any,
        device: str,
        threads: int | None,
        allow_tf32: bool,
        *,
        static: bool,
        lengths: Mapping[str, int] | None = None,
    ) -> tuple[Any, dict[str, int] | None]:
        """A session, and its nodes by where they run where the session does not tell (it was kept optimised);
        ``lengths`` of axes by their names in the file, which fixes them."""
        options = ort.SessionOptions()
        set_threads(options, threads)
        for name, length in (lengths or {}).items():
            options.add_free_dimension_override_by_name(name, length)
        options.log_severity_level = 4  # what fails is raised, and told in one line
        options.inter_op_num_threads = 1
        # The arena keeps the largest block of every shape it has seen: good for one static tile, a leak otherwise.
        options.enable_cpu_mem_arena = static
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers: list[Any] = [_CPU]
        if device == "cuda":
            providers.insert(0, (_CUDA, cuda_options(static, allow_tf32)))
        if device == "webgpu":
            options.add_provider_for_devices([webgpu_device(ort)], {})
            providers = []  # a plug-in stands in the options, and the CPU behind it
        try:
            if device == "cpu" and static and lengths is None:
                return open_kept(ort, self._path, options, _assigned)
            return ort.InferenceSession(str(self._path), options, providers=providers or None), None
        except Exception as error:  # onnxruntime's exceptions share no base class
            if device == "webgpu":
                raise BackendError(
                    f"device webgpu: {self._path.name} does not open on it ({first_line(error)}); use --device cpu or "
                    "--fallback"
                ) from error
            raise ModelFormatError(f"model {self._path}: onnxruntime refuses it ({first_line(error)})") from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see :class:`clusir.runtimes.runners.base.Runner`. Raises ClusirError where the runtime fails,
        BackendError where a GPU's first answer is wrong."""
        ready = check_feeds(feeds, self._inputs, self.name, self.spec)
        try:
            outputs = self._session_for(ready).run(self._outputs, ready)
        except Exception as error:
            raise ClusirError(f"{self.name} failed on {self._path.name}: {first_line(error)}") from error
        found = {n: np.asarray(v, dtype=np.float32) for n, v in zip(self._outputs, outputs, strict=True)}
        if self._judge is not None:
            right = self._judge().run(self._outputs, ready)
            refuse_wrong(found, dict(zip(self._outputs, right, strict=True)), self._path)
            self._judge = None
        return found

    def expect(self, size: tuple[int, int] | None) -> None:
        """See :class:`clusir.runtimes.runners.base.Runner`. Acts on the CPU, where the file names its open axes."""
        shape = self._inputs.get(self.spec.input_name, [])
        self._expected = None
        if size is None or len(shape) != 4 or not self.name.endswith("cpu"):
            return
        wanted = (1, shape[1], *size)
        open_axes = [(name, length) for name, length in zip(shape, wanted, strict=True) if isinstance(name, str)]
        lengths = dict(open_axes)
        if not {shape[2], shape[3]} & set(lengths) or any(lengths[name] != length for name, length in open_axes):
            return
        self._expected = wanted
        if wanted not in self._fixed:
            self._fixed.clear()  # one size at a time: each holds the weights once more
            self._fixed[wanted] = self._reopen(lengths)

    def _session_for(self, feeds: Mapping[str, Array]) -> Any:
        if self._expected is not None and feeds[self.spec.input_name].shape == self._expected:
            return self._fixed[self._expected]
        return self._session

    def placement(self) -> dict[str, int]:
        """Nodes per execution provider, as ONNX Runtime assigned them when it opened the file."""
        return _assigned(self._session) if self._nodes is None else dict(self._nodes)

    def takes_batches(self) -> bool:
        shape = [*self._inputs.get(self.spec.input_name, ()), None]
        return not isinstance(shape[0], int)

    def close(self) -> None:
        self._session = self._reopen = self._judge = self._expected = None
        self._fixed.clear()

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _assigned(session: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
    if not counts:  # an onnxruntime that does not record the assignment: name the providers, claim no numbers
        counts.update(dict.fromkeys(session.get_providers(), 0))
    return dict(counts)
