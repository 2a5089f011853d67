"""What makes a folder of graphs a bundle: a manifest, and golden cases that need no PyTorch."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from clusir import plain_json
from clusir.errors import ModelFormatError
from clusir.export.validate.compare import Gates, compare
from clusir.export.validate.parity import ParityCase, ParityRow, output_names, parity_cases, reference_outputs
from clusir.export.validate.tolerances import Tolerance
from clusir.network.model import ClusIR
from clusir.runtimes.runners.base import Array, Runner
from clusir.spec import ModelSpec

__all__ = ["check_golden", "write_golden_cases", "write_manifest"]

_PACKAGES = ("clusir", "torch", "onnx", "onnxruntime", "openvino", "onnxsim", "nncf", "numpy")
_GOLDEN_KINDS = ("noise", "haze")
# Expected pictures are kept in part, from the middle: enough to tell, a tenth of the bytes.
_GOLDEN_CROP = 96


def installed_versions() -> dict[str, str]:
    """Versions of the packages that had a hand in the files."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(folder: Path, spec: ModelSpec, names: Sequence[str]) -> None:
    """``manifest.json``: every file of the bundle (``names``, relative) with its bytes and SHA-256, the spec, and the
    versions behind it."""
    files = {}
    for name in names:
        content = (folder / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"format": 1, "spec": spec.to_metadata(), "versions": installed_versions(), "files": files}
    (folder / "manifest.json").write_text(plain_json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def write_golden_cases(model: ClusIR, folder: Path, spec: ModelSpec) -> None:
    """``golden/<degradation>.npz``: ``image`` uint8 HxWx3; from PyTorch what the whole graph gives (``restored``
    float32, its middle 96x96 pixels, ``posterior``, ``gate``, where there are families ``evidence``) and
    ``expert_probability``, by which near ties are known."""
    side = spec.size.static_px or 64
    (folder / "golden").mkdir(exist_ok=True)
    for case in parity_cases(((side, side),), (1,), _GOLDEN_KINDS):
        pixels = np.rint(case.image[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        expected = reference_outputs(model, {"image": to_batch(pixels)})
        expected["restored"] = middle(expected["restored"])
        kept: dict[str, Any] = {name: expected[name] for name in (*output_names(spec), "expert_probability")}
        np.savez_compressed(folder / "golden" / f"{case.degradation}.npz", image=pixels, **kept)


def check_golden(runner: Runner, folder: Path, bound: Tolerance, artefact: str) -> list[ParityRow]:
    """Run a whole graph on the golden cases of its bundle. Raises ModelFormatError where there is none, or one cannot
    be read."""
    rows = []
    spec = runner.spec
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                known = dict(stored)
            image, expected = known["image"], {name: known[name] for name in output_names(spec)}
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != spec.channels:
                raise ValueError(f"its image is {image.dtype} {image.shape}, not uint8 HxWx{spec.channels}")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ModelFormatError(f"golden case {path} cannot be read ({error}); export the bundle again") from error
        case = ParityCase(path.stem, to_batch(image))
        got = runner.run({"image": case.image})
        got = {name: middle(array) if name == spec.output_name else array for name, array in got.items()}
        gates = Gates(spec.experts, spec.top_k, known.get("expert_probability")) if spec.routed else None
        rows.append(ParityRow.of(compare(expected, got, bound, gates), artefact, runner.name, case, bound))
    if not rows:
        raise ModelFormatError(f"{folder} holds no golden case; export the bundle again")
    return rows


def to_batch(pixels: np.ndarray) -> Array:
    """uint8 HxWx3 as float32 1x3xHxW in 0..1."""
    return np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None])


def middle(batch: Array) -> Array:
    """The middle of a batch Bx3xHxW, 96 pixels high and wide where it is larger."""
    top, left = (max(0, (side - _GOLDEN_CROP) // 2) for side in batch.shape[2:])
    return batch[:, :, top : top + _GOLDEN_CROP, left : left + _GOLDEN_CROP]
