"""One file for each runtime behind one protocol, and what reads a model file's own description.

Belongs here: whatever knows ONNX Runtime, OpenVINO or PyTorch. Not here: tiles and routing (``restore``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.runners.base import Runner
    from clusir.runtimes.runners.files import ModelFiles, find_model
    from clusir.runtimes.runners.metadata import read_metadata
    from clusir.runtimes.runners.opening import BACKENDS, DEVICES, open_runner

__all__ = ["BACKENDS", "DEVICES", "ModelFiles", "Runner", "find_model", "open_runner", "read_metadata"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "base": "Runner",
        "files": "ModelFiles find_model",
        "metadata": "read_metadata",
        "opening": "BACKENDS DEVICES open_runner",
    },
)
