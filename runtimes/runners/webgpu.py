"""ONNX Runtime on a GPU of any maker (Vulkan, Direct3D 12, Metal): the plug-in of PyPI's onnxruntime-ep-webgpu.

A plug-in is registered once in a process, and answers with the devices that it takes. It picks the card itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from clusir.errors import BackendError
from clusir.names import install_line

__all__ = ["WEBGPU", "refuse_fallen", "refuse_wrong", "webgpu_device"]

WEBGPU = "WebGpuExecutionProvider"
_INSTEAD = "or use --device cpu or --fallback"
_APART = 1e-3  # of the largest value: float32 computed in another order is a thousand times nearer
_LOCK = threading.Lock()
_registered: set[str] = set()


def webgpu_device(ort: Any) -> Any:
    """The plug-in's device, for ``SessionOptions.add_provider_for_devices`` of ONNX Runtime's module ``ort``.

    Raises BackendError where the plug-in is not installed, does not load, or finds no GPU.
    """
    try:
        plugin: Any = import_module("onnxruntime_ep_webgpu")
    except ImportError as error:
        line = install_line("onnxruntime_ep_webgpu")
        raise BackendError(f"device webgpu: onnxruntime-ep-webgpu is not installed; {line}, {_INSTEAD}") from error
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(
            f"device webgpu: onnxruntime {ort.__version__} takes no plug-ins; pip install -U onnxruntime, {_INSTEAD}"
        )
    try:
        library = plugin.get_library_path()
        with _LOCK:
            if library not in _registered:
                ort.register_execution_provider_library("clusir-webgpu", library)
                _registered.add(library)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"device webgpu: its plug-in does not load ({_line(error)}), {_INSTEAD}") from error
    found = next((device for device in ort.get_ep_devices() if device.ep_name == WEBGPU), None)
    if found is None:
        raise BackendError(
            "device webgpu: onnxruntime-ep-webgpu finds no GPU here (on Linux it looks in /sys/class/drm); install the "
            f"card's driver for Vulkan, Direct3D 12 or Metal, {_INSTEAD}"
        )
    return found


def refuse_fallen(session: Any, path: Path) -> None:
    """Raise BackendError where the GPU did not start, or got nothing of the graph at ``path``."""
    if WEBGPU not in session.get_providers():
        raise BackendError(
            f"device webgpu: it could not be started, only {', '.join(session.get_providers())}, {_INSTEAD}"
        )
    if hasattr(session, "get_provider_graph_assignment_info"):
        names = {part.ep_name for part in session.get_provider_graph_assignment_info()}
        if names and WEBGPU not in names:
            raise BackendError(f"device webgpu: all of {path.name} would run on the CPU, {_INSTEAD}")


def refuse_wrong(found: Mapping[str, Any], right: Mapping[str, Any], path: Path) -> None:
    """Raise BackendError where the GPU's answers are not the processor's: plug-in 0.4.0 miscomputes some graphs."""
    for name, wanted in right.items():
        largest = max(1.0, float(np.abs(wanted).max(initial=0)))
        apart = float(np.abs(np.asarray(found[name], np.float32) - wanted).max(initial=0))
        if not apart <= _APART * largest:
            raise BackendError(
                f"device webgpu: it answers {path.name} otherwise than the processor does ({name} differs by "
                f"{apart:.2g}); use --device cpu"
            )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
