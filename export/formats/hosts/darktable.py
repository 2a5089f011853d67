"""darktable's neural restore (5.6): a ``.dtmodel`` package for its task ``denoise``.

It feeds sRGB-encoded RGB, below 0 cut off and above 1 not, in square tiles that overlap by 64 px on each side and are
put together without blending; the one output is decoded back. Read in ``restore.c``, ``restore_rgb.c`` and
``backend_onnx.c``; the package in ``dtmodel-format.md`` of darktable-ai-sdk, whose packer and validator are used.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import onnx
from onnx import ModelProto

from clusir import plain_json
from clusir.errors import ExportError
from clusir.export.formats.hosts.base import Array, HostForm, NotRunHere, OnnxHost, Source, need
from clusir.export.formats.hosts.routing.frozen import for_noise
from clusir.export.quiet import printing_to
from clusir.export.validate.tolerances import Tolerance
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

__all__ = ["OVERLAP_PX", "Darktable"]

OVERLAP_PX = 64  # each side
# Of tiles, largest first: darktable takes the first whose memory it has. Below, more than half of a tile is overlap.
_SIZES = (2048, 1024, 768, 512)
_OPSET = 23  # the newest that ONNX Runtime 1.23, which darktable brings, reads


class Darktable(OnnxHost):
    """The package and its unpacked folder, named after the model."""

    name: ClassVar[str] = "darktable"
    bound: ClassVar[Tolerance] = Tolerance(max_abs=1e-4, psnr_db=80.0, gates_equal=True)
    beyond: ClassVar[bool] = True
    levels: ClassVar[bool] = False
    channels: ClassVar[tuple[int, ...]] = (3,)

    def requires(self) -> None:
        for module in ("onnx", "onnxruntime", "dt_ai_sdk"):
            need(module, self.name)

    def prepare(self, source: Source) -> Source:
        return for_noise(source)

    def form(self, source: Source) -> HostForm:
        side = source.spec.size.static_px
        return HostForm("input", "output", side_px=side, any_size=not side, highlights=True)

    def lint(self, source: Source) -> list[str]:
        faults = []
        if source.spec.scale != 1:
            faults.append(f"its task denoise keeps the size, the graph enlarges {source.spec.scale} times")
        side = source.spec.size.static_px
        if side and side <= 2 * OVERLAP_PX:
            faults.append(f"its tiles overlap by {OVERLAP_PX} px on each side, the graph's {side} px leave nothing")
        opset = max((o.version for o in source.model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        if opset > _OPSET:
            faults.append(f"it reads opset {_OPSET} at most, the graph has {opset}")
        return faults

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        from dt_ai_sdk.package import package_model

        side = source.spec.size.static_px
        identity = model_id(source.name)
        config: dict[str, Any] = {
            "id": identity,
            "name": source.name,
            "description": f"{source.name}: noise, written by clusir",
            "task": "denoise",
            "arch": "clusir",
            "backend": "onnx",
            "version": "1.0",
            "num_inputs": 1,
            "spatial_dims": ["height", "width"],
            "attributes": {"input_sizes": [side] if side else list(_SIZES)},
            "model_card": model_card(source.spec),
        }
        with tempfile.TemporaryDirectory() as scratch:
            inside = Path(scratch) / "output" / identity
            inside.mkdir(parents=True)
            onnx.save(model, str(inside / "model.onnx"))
            (inside / "config.json").write_text(plain_json.dumps(config, indent=2) + "\n", encoding="utf-8")
            if _is_shipped(source.spec):
                shutil.copy(find_model(None).whole.with_name("LICENSE"), inside / "LICENSE")
            with printing_to(io.StringIO(), ("stdout",)):
                packed = package_model(_sdk_config(identity, Path(scratch)))
            shutil.copytree(inside, folder / identity)
            shutil.copy(packed, folder / packed.name)

    def model(self, folder: Path) -> Path:
        return self._package(folder).with_suffix("") / "model.onnx"

    def check(self, folder: Path) -> None:
        """The SDK's validator on what the package holds, and the package's own rules: one folder, named as the id.
        Raises ExportError."""
        from dt_ai_sdk.validate import run_validation

        package = self._package(folder)
        with tempfile.TemporaryDirectory() as scratch, _opened(package) as archive:
            tops = {name.split("/")[0] for name in archive.namelist()}
            if tops != {package.stem}:
                raise ExportError(f"{package}: its top folders are {sorted(tops)}, not {package.stem}")
            archive.extractall(Path(scratch) / "output")
            said = io.StringIO()
            try:
                with printing_to(said, ("stdout",)):
                    run_validation(_sdk_config(package.stem, Path(scratch)))
            except SystemExit:
                why = [line.strip() for line in said.getvalue().splitlines() if "FAIL" in line]
                raise ExportError(f"{package}: darktable-ai-sdk refuses it: {why[0] if why else 'no reason'}") from None
            packed = (Path(scratch) / "output" / package.stem / "model.onnx").read_bytes()
        if packed != self.model(folder).read_bytes():
            raise ExportError(f"{package}: its model.onnx is not the one beside it")

    def run(self, folder: Path, image: Array) -> Array:
        raise NotRunHere("darktable's restorer cannot be called from outside the program")

    @staticmethod
    def _package(folder: Path) -> Path:
        found = sorted(folder.glob("*.dtmodel"))
        if len(found) != 1:
            raise ExportError(f"{folder}: {len(found)} packages where there should be one; export the target again")
        return found[0]


def _opened(package: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(package)
    except (OSError, zipfile.BadZipFile) as error:
        raise ExportError(f"{package}: cannot be read ({error}); export the target again") from error


def model_id(name: str) -> str:
    """A name that may be a folder's: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def model_card(spec: ModelSpec) -> dict[str, str]:
    """What darktable shows its users. Of the shipped weights their own card's facts; of others what is not known is
    said to be."""
    common = {
        "scope": "Noise of photographs. Rain, haze and darkness are part of the scene and are left alone.",
        "paper": "https://arxiv.org/abs/2512.10948" if _is_shipped(spec) else "not stated",
        "source": "not stated",
        "notes": "Fourier transforms are products with constant matrices; how noisy a tile is decides what is done "
        "in it, and nothing but noise is mended.",
    }
    if not _is_shipped(spec):
        unknown = dict.fromkeys(("author", "license", "training_data", "training_data_license"), "not stated")
        return {"long_description": "A brought network, exported by clusir.", **common, **unknown,
                "notes": "Exported by clusir; fill this card in before passing the package on."}  # fmt: skip
    return {
        "long_description": "One network for several degradations, of which this package mends noise.",
        **common,
        "source": "clusir-export --target darktable; trained by clusir-train (Apache-2.0)",
        "author": "The ClusIR authors",
        "license": "Apache-2.0",
        "training_data": "674 free photographs, each named with its author and source in clusir's ATTRIBUTION.tsv; "
        "degradations are synthetic",
        "training_data_license": "CC0, public domain, CC BY; 48 of 674 CC BY-SA, Free Art Licence or GFDL",
    }


def _is_shipped(spec: ModelSpec) -> bool:
    ours = ModelSpec.from_metadata(read_metadata(find_model(None).whole)).checkpoint_sha256
    return bool(ours) and spec.checkpoint_sha256 == ours


def _sdk_config(identity: str, root: Path) -> Any:
    from dt_ai_sdk.config import ModelConfig

    return ModelConfig(id=identity, name=identity, description=identity, task="denoise", root_dir=root)
