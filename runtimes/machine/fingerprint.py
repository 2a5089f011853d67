"""What machine a measurement was taken on, as plain data: a figure without its hardware says nothing.

Nothing here imports a runtime (versions are read from the installed packages' metadata).
"""

from __future__ import annotations

import datetime
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from clusir.runtimes.machine.allowed import cores, memory_bytes

__all__ = [
    "PACKAGES",
    "cpu_features",
    "cpu_model",
    "describe",
    "fingerprint",
    "gpus",
    "package_versions",
]

PACKAGES = (
    "clusir",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "onnx",
    "onnxscript",
    "onnxsim",
    "nncf",
    "safetensors",
    "scikit-image",
    "tifffile",
    "ray",
)

# The instruction sets that decide how fast, and for INT8 how exact, a CPU kernel is. Left: what the kernels' authors
# call it; right: its names in /proc/cpuinfo (x86, then Arm).
_FEATURES = {
    "SSE4.2": ("sse4_2",),
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "AVX512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX-INT8": ("amx_int8",),
    "NEON": ("asimd", "neon"),
    "DOTPROD": ("asimddp",),
    "I8MM": ("i8mm",),
}


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """``{package: version}`` of those in ``names`` that are installed, in that order."""
    from importlib import metadata  # it brings the parser of e-mails, which a run of one picture does not need

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _proc(name: str) -> str:
    try:
        return Path("/proc", name).read_text(errors="replace")
    except OSError:
        return ""


def _ask(*command: str) -> str:
    """The output of a small system tool, or an empty string where it is absent, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_model() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _proc("cpuinfo"), re.MULTILINE)
    name = found.group(1) if found else _ask("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return " ".join(name.split()) or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The instruction sets of this CPU that matter to inference kernels, for example ``("AVX2", "FMA", "VNNI")``.

    Empty where the system tells nothing (only Linux and macOS on Arm are asked).
    """
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _proc("cpuinfo"), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        flags |= {"asimd", "asimddp"}  # every Apple CPU since the M1 has both
    return tuple(label for label, names in _FEATURES.items() if flags.intersection(names))


def gpus() -> list[dict[str, str]]:
    """One ``{"name", "driver", "memory", "compute_capability"}`` per NVIDIA card that the driver lists."""
    keys = ("name", "driver", "memory", "compute_capability")
    lines = _ask(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"
    ).splitlines()
    return [dict(zip(keys, (part.strip() for part in line.split(",")), strict=False)) for line in lines if line]


def fingerprint(threads: int | None = None) -> dict[str, Any]:
    """Everything a reader needs to judge a timing: date, system, CPU, cores, memory, cards, versions.

    ``threads`` is the number the measured configuration was given; None leaves it to the runtime.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cpu_features": list(cpu_features()),
        "cores": cores(),
        "threads": threads,
        "memory_mib": memory_bytes() >> 20,
        "gpus": gpus(),
        "packages": package_versions(),
    }


def describe(data: dict[str, Any]) -> str:
    """A fingerprint as one line for the foot of a table."""
    parts = [
        f"{data['cpu']} ({', '.join(data['cpu_features']) or 'features unknown'})",
        f"{data['cores']} cores" + (f", {data['threads']} threads" if data["threads"] else ""),
        f"{data['memory_mib']} MiB",
        *(f"{card.get('name')} (driver {card.get('driver')}, {card.get('memory')})" for card in data["gpus"]),
        f"{data['system']} {data['machine']}",
        f"Python {data['python']}",
        ", ".join(f"{name} {version}" for name, version in data["packages"].items()),
        data["date"],
    ]
    return " · ".join(parts)
