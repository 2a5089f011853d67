"""Which devices really run: one tiny network is run on each, in a process of its own.

A provider that is listed is not a provider that works: its libraries may be missing (the runtime then falls back to
the CPU and only says so on stderr), or loading it may end the process. So :func:`probe` starts
``python -m clusir.runtimes.machine.probe NAME``, which prints one line of JSON, and judges what came back.

NAME is ``ort:<Execution Provider>``, ``openvino:<device>``, ``torch:cpu`` or ``torch:cuda``; ``ort``, ``openvino`` and
``torch`` alone list what there is to try.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.runtimes.runners.quiet import import_openvino
from clusir.runtimes.runners.webgpu import WEBGPU, webgpu_device

__all__ = ["PROBE_MODEL", "Probe", "expected_output", "list_devices", "probe"]

# y = Relu(Conv(x, w)): x and y float32 [1,1,4,4], w = 0..8 as a 3x3 kernel, padding 1, opset 18. The onnx package is
# not needed to run models, so the 181 bytes are here; a test writes the same network with onnx.helper and compares.
PROBE_MODEL = base64.b64decode(
    "CAgSADqoAQoiCgF4CgF3EgFjIgRDb252KhEKBHBhZHNAAUABQAFAAaABBwoMCgFjEgF5IgRSZWx1EgVwcm9iZSozCAEIAQgDCAMQASIkAAAA"
    "AAAAgD8AAABAAABAQAAAgEAAAKBAAADAQAAA4EAAAABBQgF3WhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiGwoBeRIWChQIARIQCgII"
    "AQoCCAEKAggECgIIBEIECgAQEg=="
)
_INPUT = np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(1, 1, 4, 4)
_WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3)
_TOLERANCE = 0.05  # values reach 12; room for TF32 and bfloat16 accelerators, none for a wrong kernel


@dataclass(frozen=True)
class Probe:
    """What one device did: ``ok``, or ``reason`` in one line. ``ran_on`` is where the runtime says the network ran."""

    name: str
    ok: bool
    ran_on: str = ""
    reason: str = ""
    detail: str = ""


def expected_output() -> NDArray[np.float32]:
    """What the probe network gives for the probe input, [1,1,4,4], computed without any runtime."""
    padded = np.pad(_INPUT[0, 0], 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.maximum(np.einsum("ijkl,kl->ij", windows, _WEIGHT), 0)[None, None].astype(np.float32)


def _run_ort(provider: str) -> tuple[NDArray[np.float32], str, str]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 2
    if hasattr(ort, "preload_dlls") and provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        ort.preload_dlls(directory="")  # the CUDA and cuDNN libraries that came as Python packages
    if provider == WEBGPU:  # a plug-in: a device that the options name
        options.add_provider_for_devices([webgpu_device(ort)], {})
        session = ort.InferenceSession(PROBE_MODEL, options)
    else:
        session = ort.InferenceSession(PROBE_MODEL, options, providers=[provider])
    ran_on = session.get_providers()[0]
    return session.run(None, {"x": _INPUT})[0], ran_on, ""


def _run_openvino(device: str) -> tuple[NDArray[np.float32], str, str]:
    openvino = import_openvino()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(PROBE_MODEL), device)
    output = np.asarray(compiled({"x": _INPUT})[0])
    return output, ",".join(compiled.get_property("EXECUTION_DEVICES")), core.get_property(device, "FULL_DEVICE_NAME")


def _run_torch(device: str) -> tuple[NDArray[np.float32], str, str]:
    import torch  # the backend under test: imported where it was asked for, in a child process

    image, weight = (torch.from_numpy(a).to(device) for a in (_INPUT, _WEIGHT[None, None]))
    output = torch.relu(torch.nn.functional.conv2d(image, weight, padding=1)).cpu().numpy()
    return output, str(image.device), torch.cuda.get_device_name() if device == "cuda" else ""


def _list(backend: str) -> list[str]:
    if backend == "ort":
        import onnxruntime as ort

        plugins = [WEBGPU] if find_spec("onnxruntime_ep_webgpu") else []
        return [*ort.get_available_providers(), *plugins]
    if backend == "openvino":
        return list(import_openvino().Core().available_devices)
    import torch  # as in _run_torch

    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def _child(name: str) -> dict[str, Any]:
    backend, _, device = name.partition(":")
    if not device:
        return {"devices": _list(backend)}
    runner = {"ort": _run_ort, "openvino": _run_openvino, "torch": _run_torch}[backend]
    output, ran_on, detail = runner(device)
    return {"error": float(np.abs(output - expected_output()).max()), "ran_on": ran_on, "detail": detail}


def _ask(name: str, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """The child's answer and its last words on stderr; no answer where it crashed or hung."""
    # The child is this very file's module, whatever the current folder holds.
    command = [sys.executable, "-P", "-m", "clusir.runtimes.machine.probe", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {timeout_s:.0f} s"
    words = _last_words(done.stderr)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        how = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"failed (exit {done.returncode})"
        return None, words or how
    return dict(json.loads(lines[-1])), words


def _last_words(stderr: str) -> str:
    """The line of ``stderr`` that tells most: one about a library that cannot be loaded, or else the last."""
    # Python shows the source line below a warning; it says nothing.
    lines = [line.strip() for line in stderr.splitlines() if line.strip() not in ("", "warnings.warn(")]
    telling = [line for line in lines if "cannot open shared object" in line or "Failed to load library" in line]
    return (
        (telling or lines or [""])[-1].replace("\x1b[0;93m", "").replace("\x1b[1;31m", "").replace("\x1b[m", "")[:400]
    )


def list_devices(backend: str, timeout_s: float = 120.0) -> tuple[list[str], str]:
    """The devices ``backend`` (``ort``, ``openvino``, ``torch``) lists, and where it cannot even be loaded, why not."""
    answer, words = _ask(backend, timeout_s)
    return (list(answer["devices"]), "") if answer else ([], words)


def probe(name: str, timeout_s: float = 120.0) -> Probe:
    """Run the probe network on ``name``, for example ``ort:CUDAExecutionProvider``. A broken device does not raise."""
    answer, words = _ask(name, timeout_s)
    if answer is None:
        return Probe(name, False, reason=words)
    device, ran_on = name.partition(":")[2], str(answer["ran_on"])
    if not ran_on.lower().startswith(device.lower().partition(".")[0]):
        return Probe(name, False, ran_on, f"listed, but it fell back to {ran_on}" + (f": {words}" if words else ""))
    if not answer["error"] <= _TOLERANCE:
        return Probe(name, False, ran_on, f"runs, but its numbers are wrong by {answer['error']:.3g}")
    return Probe(name, True, ran_on, detail=str(answer["detail"]))


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1])))
