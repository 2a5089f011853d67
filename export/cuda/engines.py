"""The engines of the CUDA matrix: an ONNX file bound to the device, and PyTorch in its three modes, on equal terms.

Each engine keeps its input and output on the device, runs one batch per call and waits for it: what is compared is the
network, not the bus.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clusir.errors import ClusirError
from clusir.network.model import ClusIR
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.cuda import BoundSession, NodeReport, open_session, profile_nodes
from clusir.spec import ModelSpec

__all__ = ["OrtEngine", "TorchEngine", "card_memory_mib", "exact_kernels"]


def card_memory_mib() -> float | None:
    """Memory in use on the first card, in MiB; None where no NVIDIA driver answers."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return float(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Inside, PyTorch computes float32 without TF32 and tries convolution kernels out; afterwards as before."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


class OrtEngine:
    """An ONNX file on ``cpu`` or ``cuda`` for the one shape of ``feeds``; a runner too, for the parity check."""

    def __init__(self, path: Path, device: str, feeds: Mapping[str, Array], spec: ModelSpec, cuda_graph: bool) -> None:
        self.spec, self.name = spec, f"ort:{device}" + ("+graph" if cuda_graph else "")
        static = spec.size.static_px > 0
        self._session: Any = open_session(path, device, static=static, cuda_graph=cuda_graph)
        self._bound = BoundSession(self._session, feeds, device)
        self._path, self._device, self._static = path, device, static
        self()

    def __call__(self) -> None:
        self._bound.run()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._bound.write(feeds)
        self._bound.run()
        return self._bound.read()

    def nodes(self, feeds: Mapping[str, Array]) -> NodeReport:
        """Where the nodes run, from a profiled run of its own."""
        return profile_nodes(self._path, self._device, feeds, static=self._static)

    def expect(self, size: tuple[int, int] | None) -> None:
        """Nothing: what is measured is the graph as it was opened."""

    def placement(self) -> dict[str, int]:
        return {}

    def takes_batches(self) -> bool:
        return False  # the one shape that it was opened for

    def close(self) -> None:
        self._bound = None  # type: ignore[assignment]
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TorchEngine:
    """The network itself: ``eager``, ``channels_last`` or ``compile``, in fp32 or fp16 (autocast); to be used inside
    :func:`exact_kernels`.

    Autocast, not ``model.half()``: norms, softmax and the FFT need float32, and so does the ONNX file's float16.
    """

    def __init__(
        self, model: ClusIR, mode: str, precision: str, device: str, feeds: Mapping[str, Array], spec: ModelSpec
    ) -> None:
        self.spec, self.name = spec, f"torch:{device}"
        layout = torch.channels_last if mode == "channels_last" else torch.contiguous_format
        self._device, self._layout, self._half = device, layout, precision == "fp16"
        module: Any = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._module = torch.compile(module) if mode == "compile" else module
        self._image = self._upload(feeds["image"])
        self._done: Any = None
        self()

    def _upload(self, image: Array) -> torch.Tensor:
        return torch.from_numpy(image).to(self._device).contiguous(memory_format=self._layout)

    def __call__(self) -> None:
        kind = torch.float16 if self._device == "cuda" else torch.bfloat16
        with torch.inference_mode(), torch.autocast(self._device, kind, enabled=self._half):
            self._done = self._module(self._image)
        if self._device == "cuda":
            torch.cuda.synchronize()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._image = self._upload(feeds["image"])
        self()
        parts = {
            "restored": self._done.restored,
            "posterior": torch.cat(self._done.posteriors, dim=1),
            "gate": torch.cat(self._done.gates, dim=1),
        }
        return {name: tensor.float().cpu().numpy() for name, tensor in parts.items()}

    def expect(self, size: tuple[int, int] | None) -> None:
        """Nothing: what is measured is the graph as it was opened."""

    def placement(self) -> dict[str, int]:
        return {}

    def takes_batches(self) -> bool:
        return False  # the one shape that it was opened for

    def close(self) -> None:
        self._module = self._done = None
        self._image = torch.empty(0)
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require(device: str) -> None:
    """Raise BackendError, with the line that installs it, where ONNX Runtime cannot run on ``device``."""
    from clusir.errors import BackendError
    from clusir.runtimes.machine.diagnose import cuda_advice
    from clusir.runtimes.machine.fingerprint import fingerprint
    from clusir.runtimes.machine.probe import probe

    if device not in ("cpu", "cuda"):
        raise ClusirError(f"device {device!r} is not cpu or cuda")
    done = probe("ort:CUDAExecutionProvider" if device == "cuda" else "ort:CPUExecutionProvider")
    if not done.ok:
        advice = cuda_advice(fingerprint())
        raise BackendError(f"device {device}: {advice.what} ({done.reason}); {advice.fix}")
