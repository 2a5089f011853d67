"""What is installed, what really runs, and the exact command that fixes what is broken. No runtime is imported here."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusir.names import INSTALL_GPU, MODULES, install_line
from clusir.runtimes.machine.choice import known_speeds
from clusir.runtimes.machine.fingerprint import fingerprint
from clusir.runtimes.machine.probe import Probe, list_devices, probe
from clusir.runtimes.runners.webgpu import WEBGPU

__all__ = ["Diagnosis", "Finding", "cuda_advice", "diagnose"]

# Providers that only forward to a remote service: they run no operator of a restoration network.
_NOT_LOCAL = ("AzureExecutionProvider",)


@dataclass(frozen=True)
class Finding:
    """``level``: ``error`` (broken), ``warning`` (works, but not as expected) or ``note``; ``fix``: a line to run."""

    level: str
    what: str
    fix: str = ""


@dataclass
class Diagnosis:
    """Everything ``clusir-doctor`` shows: machine fingerprint, one probe per device, findings, and the ``speeds`` that
    ``--precision auto`` has measured here (:func:`clusir.runtimes.machine.choice.known_speeds`)."""

    machine: dict[str, Any]
    probes: list[Probe] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    speeds: list[dict[str, Any]] = field(default_factory=list)

    def runs(self, backend: str, device: str = "") -> bool:
        """Whether ``backend`` (``auto``: any) ran the probe on ``device`` (``cpu``, ``cuda``, ``gpu``; empty: any)."""
        wanted = device.lower()
        for done in self.probes:
            kind, _, name = done.name.partition(":")
            if done.ok and backend in (kind, "auto") and name.lower().startswith(wanted):
                return True
        return False

    def exit_code(self, backend: str = "auto", device: str = "") -> int:
        """3 where what is needed does not run, else 1 where something is broken, else 0."""
        if not self.runs(backend, device):
            return 3
        return 1 if any(f.level == "error" for f in self.findings) else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "machine": self.machine,
            "devices": [vars(p) for p in self.probes],
            "models": self.models,
            "speeds": self.speeds,
            "findings": [vars(f) for f in self.findings],
        }


def _installed(prefix: str) -> list[str]:
    """Names of the installed distributions that start with ``prefix``; two of them may own the same module."""
    names = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}
    return sorted(n for n in names if n == prefix or n.startswith(prefix + "-"))


def _check_ort_packages() -> list[Finding]:
    builds = [n for n in _installed("onnxruntime") if n != "onnxruntime-extensions" and "tools" not in n]
    if len(builds) < 2:
        return []
    wanted = "gpu" if "onnxruntime-gpu" in builds else "cpu"
    return [
        Finding(
            "error",
            f"{' and '.join(builds)} are installed together: each overwrites the other's files",
            f'pip uninstall -y {" ".join(builds)} && pip install "clusir[{wanted}]"',
        )
    ]


def cuda_advice(machine: dict[str, Any], backend: str = "ort") -> Finding:
    """Why CUDA does not run here, and the command that fixes it: the first obstacle only."""
    packages = machine["packages"]
    if not machine["gpus"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden in ("", "-1"):
            return Finding("note", f"CUDA_VISIBLE_DEVICES={hidden!r} hides every card", "unset CUDA_VISIBLE_DEVICES")
        return Finding(
            "note",
            "no NVIDIA card answers (nvidia-smi lists none)",
            f"on a machine with a card and its driver: {INSTALL_GPU}",
        )
    if backend == "torch":
        return Finding("error", "this torch is not built for CUDA or does not fit the driver", "pip install -U torch")
    if "onnxruntime-gpu" not in packages:
        return Finding(
            "warning",
            "there is a card, but onnxruntime is the CPU build",
            INSTALL_GPU,
        )
    return Finding(
        "error",
        "onnxruntime-gpu is installed, but its CUDA or cuDNN libraries do not load",
        'pip install -U "onnxruntime-gpu[cuda,cudnn]"',
    )


def _check_cpu(machine: dict[str, Any]) -> list[Finding]:
    findings = []
    features = set(machine["cpu_features"])
    if "x86" in machine["machine"] and features and "AVX2" not in features:
        findings.append(Finding("warning", "the CPU has no AVX2: expect several times the usual latency"))
    if features and not features & {"VNNI", "AMX-INT8", "DOTPROD", "I8MM"}:
        findings.append(
            Finding(
                "note", "the CPU has no INT8 dot product (VNNI): INT8 seldom beats fp32 here; measure with clusir-bench"
            )
        )
    if features & {"BF16", "AMX-INT8"}:
        findings.append(
            Finding("note", "the CPU has bfloat16: OpenVINO on its own computes in it; clusir asks for float32 instead")
        )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max" and int(quota) / int(period) < machine["cores"]:
            share = int(quota) / int(period)
            findings.append(
                Finding(
                    "warning",
                    f"a quota of {share:.1f} CPUs on {machine['cores']} visible cores: runtimes start too many threads",
                    f"give every command --threads {max(1, int(share))}",
                )
            )
    except (OSError, ValueError):
        pass
    return findings


def _check_models(folder: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    files = sorted([*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")])
    models = [{"file": str(f.relative_to(folder)), "mb": round(f.stat().st_size / 1e6, 2)} for f in files]
    if any(f.suffix == ".onnx" for f in files):
        return models, []
    fix = "pip install --force-reinstall --no-deps clusir"
    return models, [Finding("error", f"the shipped ONNX model is missing from {folder}", fix)]


def _failure(done: Probe) -> Finding:
    backend = done.name.partition(":")[0]
    if "CUDA" in done.name or "Tensorrt" in done.name or done.name == "torch:cuda":
        library = re.search(r"lib[\w.+-]+\.so[\w.]*", done.reason)
        fix = 'pip install -U "onnxruntime-gpu[cuda,cudnn]"' if backend == "ort" else "pip install -U torch"
        missing = f" ({library.group(0)} is missing)" if library else ""
        level = "warning" if "Tensorrt" in done.name else "error"
        return Finding(level, f"{done.name} does not run: {done.reason or 'no reason given'}{missing}", fix)
    if WEBGPU in done.name:
        return Finding("warning", f"{done.name} does not run: {done.reason}", "")
    package = MODULES[backend]
    return Finding("error", f"{done.name} does not run: {done.reason}", f"pip install --force-reinstall {package}")


def _backend_devices(backend: str) -> tuple[list[str], list[Finding]]:
    devices, reason = list_devices(backend)
    if reason and not devices:
        package = MODULES[backend]
        return [], [
            Finding("error", f"{package} is installed but cannot be loaded: {reason}", install_line(MODULES[backend]))
        ]
    return [f"{backend}:{d}" for d in devices if d not in _NOT_LOCAL], []


def diagnose(models: Path, probe_device: Callable[[str], Probe] = probe) -> Diagnosis:
    """Probe every device of every installed backend (a few seconds) and judge the machine.

    ``models`` is the folder of the shipped model; ``probe_device`` does what
    :func:`clusir.runtimes.machine.probe.probe` does.
    """
    machine = fingerprint()
    result = Diagnosis(machine)
    result.findings += _check_ort_packages()
    present = [b for b, package in MODULES.items() if _installed(package)]
    # Two at a time: each is a process of its own that mostly loads libraries.
    with ThreadPoolExecutor(2) as pool:
        for names, problems in pool.map(_backend_devices, present):
            result.findings += problems
            result.probes += pool.map(probe_device, names)
    result.findings += [_failure(p) for p in result.probes if not p.ok]
    if not any(p.ok for p in result.probes):
        result.findings.append(Finding("error", "no backend runs on this machine", install_line(MODULES["ort"])))
    elif "ort" not in present:
        result.findings.append(
            Finding("warning", "onnxruntime, the default backend, is not installed", install_line(MODULES["ort"]))
        )
    if machine["gpus"] and not any(p.name.startswith("ort:CUDA") for p in result.probes):
        result.findings.append(cuda_advice(machine))
    result.findings += _check_cpu(machine)
    result.speeds = known_speeds()
    result.models, problems = _check_models(models)
    result.findings += problems
    return result
