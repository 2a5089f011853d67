"""``open_runner``: which backend opens which file, and what happens when it cannot."""

from __future__ import annotations

import warnings
from pathlib import Path

from clusir.errors import BackendError, UsageError
from clusir.names import BACKENDS, DEVICES, MODULES, install_line, installed_backends
from clusir.runtimes.runners.base import Runner
from clusir.runtimes.runners.external import check_weights
from clusir.runtimes.runners.late import LateRunner
from clusir.runtimes.runners.metadata import read_metadata
from clusir.runtimes.runners.quiet import import_openvino
from clusir.spec import ModelSpec

__all__ = ["BACKENDS", "DEVICES", "open_late", "open_runner", "readers_of"]

_READS = {".onnx": ("ort", "openvino"), ".ort": ("ort",), ".xml": ("openvino",), ".safetensors": ("torch",)}


def readers_of(path: Path) -> tuple[str, ...]:
    """The backends that read a file, by its suffix, in the order in which ``auto`` tries them."""
    return _READS.get(path.suffix, ())


def open_runner(
    path: str | Path,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
    *,
    graph: str | None = None,
    bf16: bool = False,
) -> Runner:
    """Open one model file.

    ``backend`` auto takes the first installed one that reads the suffix (``.onnx``: ort, then openvino; ``.ort``: ort;
    ``.xml``: openvino; ``.safetensors``: torch). ``device`` auto is CUDA where it works, else the CPU; a device that is
    named and absent raises BackendError (exit code 3) that lists what there is, unless ``fallback``: then the CPU runs,
    with one RuntimeWarning. ``graph`` (``whole``, ``tile``, ``router``) chooses which graph a checkpoint answers as; an
    ONNX file is one graph and refuses another. ``bf16`` computes a float32 file in bfloat16, which OpenVINO does: auto
    takes that backend. Raises UsageError for an unknown option or a missing file, ModelFormatError for what is no
    model, or where the file that a graph keeps its weights in is missing or of another export.
    """
    path = Path(path)
    backend = _checked_backend(path, backend, device, threads, bf16)
    try:
        runner = _open(path, backend, device, threads, graph, bf16)
    except BackendError as error:
        if not fallback or device in ("auto", "cpu"):
            raise
        warnings.warn(f"{error}; falling back to the CPU", RuntimeWarning, stacklevel=2)
        runner = _open(path, backend, "cpu", threads, graph, bf16)
    alone = graph == "whole" and runner.spec.graph == "pooled"  # it answers alone, for pictures of one tile
    if graph is not None and runner.spec.graph != graph and not alone:
        found = runner.spec.graph
        runner.close()
        raise UsageError(f"model {path}: it is a {found} graph, a {graph} graph is needed")
    return runner


def _checked_backend(path: Path, backend: str, device: str, threads: int | None, bf16: bool) -> str:
    """The backend that will open ``path``. Raises what :func:`open_runner` raises before a runtime sees the file."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads} is not a positive number")
    if path.suffix not in _READS:
        raise UsageError(f"model {path}: the suffix is not one of {', '.join(_READS)}")
    if not path.is_file():
        raise UsageError(f"model {path}: no such file")
    readers = _READS[path.suffix]
    if bf16:
        if backend not in ("auto", "openvino") or "openvino" not in readers:
            raise UsageError(
                f"model {path}: bf16 runs on backend openvino, not on {backend}, from an .onnx or .xml file"
            )
        backend = "openvino"
    if backend == "auto":
        backend = _first_installed(readers, path)
    elif backend not in readers:
        raise UsageError(
            f"model {path}: backend {backend} does not read {path.suffix} (it needs {' or '.join(readers)})"
        )
    check_weights(path)
    return backend


def open_late(
    path: str | Path,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
    *,
    bf16: bool = False,
) -> Runner:
    """:func:`open_runner` of a whole graph, which an ONNX Runtime or OpenVINO that computes on the CPU opens at the
    first run only (:mod:`clusir.runtimes.runners.late`). What a device, a backend or a file's description lacks is
    raised here; what a runtime has against the graph, by the first run."""
    path = Path(path)
    chosen = _checked_backend(path, backend, device, threads, bf16)
    if path.suffix == ".onnx" and _computes_on_cpu(chosen, device, bf16):
        spec = ModelSpec.from_metadata(read_metadata(path))
        if spec.graph == "whole":
            return LateRunner(
                spec, f"{chosen}:cpu", lambda: open_runner(path, chosen, "cpu", threads, graph="whole", bf16=bf16)
            )
    return open_runner(path, backend, device, threads, fallback, graph="whole", bf16=bf16)


def _computes_on_cpu(backend: str, device: str, bf16: bool) -> bool:
    """Whether ``backend`` is there and will take the CPU, as far as can be said without opening a graph."""
    try:
        if backend == "ort":
            import onnxruntime

            return device == "cpu" or (
                device == "auto" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
            )
        if backend == "openvino" and device in ("auto", "cpu"):
            openvino = import_openvino()
            if bf16:
                from clusir.runtimes.runners.openvino import require_bfloat16

                require_bfloat16(openvino.Core())
            return True
    except ImportError:
        pass
    return False


def _open(path: Path, backend: str, device: str, threads: int | None, graph: str | None, bf16: bool) -> Runner:
    if backend == "ort":
        from clusir.runtimes.runners.ort import OrtRunner

        return OrtRunner(path, device, threads)
    if backend == "openvino":
        from clusir.runtimes.runners.openvino import OpenVinoRunner

        return OpenVinoRunner(path, device, threads, bf16=bf16)
    from clusir.runtimes.runners.torch import TorchRunner

    return TorchRunner(path, device, threads, graph=graph or "whole")


def _first_installed(readers: tuple[str, ...], path: Path) -> str:
    if installed := installed_backends(readers):
        return installed[0]
    raise BackendError(
        f"model {path}: no backend that reads {path.suffix} is installed; "
        f"install one with: {install_line(MODULES[readers[0]])}"
    )
