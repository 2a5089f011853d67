"""The files that are to be verified: those of a bundle, by its manifest, or one file and what stands beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusir.errors import ModelFormatError, UsageError
from clusir.runtimes import open_runner
from clusir.runtimes.runners.external import DATA_SUFFIX
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

__all__ = ["Artefact", "artefacts", "check_manifest"]

_MODELS = (".onnx", ".xml", ".ort")
_PRECISIONS = ("fp32", "fp16", "int8")
_READERS = {".onnx": "ort", ".xml": "openvino", ".ort": "ort"}


@dataclass(frozen=True)
class Artefact:
    """One model file. ``name``: relative to the bundle; ``golden``: the folder of the bundle's golden cases."""

    path: Path
    name: str
    spec: ModelSpec
    golden: Path | None = None


def artefacts(model: str | None) -> list[Artefact]:
    """Every model file of a bundle (``.onnx``, ``.xml``, ``.ort``), or an ``.onnx`` file with the graphs and precisions
    that stand beside it.

    Raises UsageError where there is none, ModelFormatError where a bundle is not what its manifest says, or a file is
    another graph or precision than its name says.
    """
    files = find_model(model)
    if files.whole.suffix != ".onnx":
        raise UsageError(f"model {files.whole}: clusir-verify checks .onnx files and bundles")
    folder = files.whole.parent
    named_file = model is not None and Path(model).is_file() and Path(model).suffix == ".onnx"
    if model is None or named_file or not (folder / "manifest.json").is_file():
        if model is not None and not named_file:
            raise ModelFormatError(f"bundle {model}: it holds no manifest.json; export it again")
        stem = files.whole.name.removesuffix(".onnx")
        names = [f"{stem}{variant}{graph}.onnx" for variant in ("", ".fp16", ".int8") for graph in _GRAPHS]
        return [_artefact(folder, name, None) for name in names if (folder / name).is_file()]
    names = check_manifest(folder)
    golden = [name for name in names if name.startswith("golden/") and name.endswith(".npz")]
    if not golden:
        raise ModelFormatError(f"bundle {folder}: its manifest names no golden case; export it again")
    found = [_artefact(folder, name, folder / "golden") for name in names if name.endswith(_MODELS)]
    whole = {artefact.spec.graph for artefact in found if artefact.name.startswith("model.")}
    if missing := [graph for graph in _GRAPHS.values() if graph not in whole]:
        raise ModelFormatError(f"bundle {folder}: it has no {missing[0]} graph; export it again")
    return found


_GRAPHS = {"": "whole", ".tile": "tile", ".router": "router"}


def check_manifest(folder: Path) -> list[str]:
    """The names in the manifest of a bundle. Raises ModelFormatError where the manifest cannot be read, a file is
    missing or has other contents, or the folder holds a model or a golden case that the manifest does not name."""

    def refuse(why: str) -> ModelFormatError:
        return ModelFormatError(f"bundle {folder}: {why}; export it again")

    try:
        manifest: Any = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(f"its manifest.json cannot be read ({type(error).__name__}: {error})") from error
    if not listed:
        raise refuse("its manifest names no file")
    for name, (size, digest) in listed.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise refuse(f"its manifest names {name!r}, which is not inside it")
        if not path.is_file():
            raise refuse(f"{name} is missing")
        with path.open("rb") as stream:
            if path.stat().st_size != size or hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise refuse(f"{name} is not the file that the manifest names (its SHA-256 differs)")
    counted = (*_MODELS, ".npz", ".bin", DATA_SUFFIX)
    there = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in counted)
    more = sorted(name for name in there if name not in listed and not name.startswith("."))
    if more:
        raise refuse(f"{more[0]} is in it and not in its manifest")
    return list(listed)


def _artefact(folder: Path, name: str, golden: Path | None) -> Artefact:
    """One file with its spec, which has to say what the name says: bounds and inputs follow from it."""
    path = folder / name
    if path.suffix == ".onnx":
        spec = ModelSpec.from_metadata(read_metadata(path))
    else:
        with open_runner(path, _READERS[path.suffix], "cpu", threads=1) as runner:
            spec = runner.spec
    words = Path(name).name.removesuffix(path.suffix).split(".")
    graph = words[-1] if words[-1] in ("tile", "router") else "whole"
    precision = next((word for word in words[1:] if word in _PRECISIONS), "fp32")
    if (spec.graph, spec.precision) != (graph, precision):
        raise ModelFormatError(
            f"model {path}: it says of itself that it is the {spec.graph} graph in {spec.precision}, its name says "
            f"{graph} in {precision}; export it again"
        )
    return Artefact(path, name, spec, golden)
