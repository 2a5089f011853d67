"""From what the user named (nothing, a file, a bundle folder or zip) to the files that a restoration opens."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import clusir.weights
from clusir.errors import ModelFormatError, UsageError
from clusir.names import BFLOAT16, PRECISIONS
from clusir.runtimes.runners.digests import digest_of, state_of
from clusir.runtimes.runners.external import external_files

__all__ = ["PRECISIONS", "ModelFiles", "find_model", "variants"]

_SHIPPED = "tiny"
_MAX_UNZIPPED_BYTES = 4 << 30


@dataclass(frozen=True)
class ModelFiles:
    """The whole graph, and the graphs beside it for shared routing or shared statistics (None where they are not
    there): ``tile`` with ``router``, or with ``statistics``."""

    whole: Path
    tile: Path | None = None
    router: Path | None = None
    statistics: Path | None = None
    # Keeps the folder that a zip was unpacked into alive as long as the files are in use.
    _unpacked: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    def all(self) -> tuple[Path, ...]:
        """Every file that decides the pixels: the graphs, and what they keep their weights in. Raises OSError."""
        graphs = dict.fromkeys(path for path in (self.whole, self.tile, self.router, self.statistics) if path)
        weights = {path for graph in graphs for path in external_files(graph)}
        return (*graphs, *sorted(weights))

    def sha256(self) -> str:
        """Hex digest over the bytes of all files: what a journal remembers of the artefact. Raises OSError."""
        digest = hashlib.sha256()
        for path in self.all():
            digest.update(digest_of(path, "sha256"))
        return digest.hexdigest()

    def unchanged(self) -> Callable[[], bool]:
        """A function that says whether all files are still those of now. Raises OSError."""
        paths = self.all()
        before = [_state(path) for path in paths]
        return lambda: [_state(path) for path in paths] == before

    def close(self) -> None:
        """Remove what was unpacked from a zip; the files may not be opened any more."""
        if self._unpacked is not None:
            self._unpacked.cleanup()


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        return state_of(path.stat())
    except OSError:
        return None


def find_model(model: str | Path | None = None, precision: str | None = None, backend: str = "auto") -> ModelFiles:
    """The files of ``model``: None (the shipped one), an ``.onnx``, ``.ort``, ``.xml`` or ``.safetensors`` file, or a
    bundle folder or ``.zip`` that holds ``model.onnx``.

    ``precision`` chooses ``model.fp16.onnx`` or ``model.int8.onnx`` beside it; ``bf16`` is computed from the float32
    file. ``backend`` torch takes the shipped
    checkpoint. Raises UsageError where nothing is there, ModelFormatError for an unsafe zip.
    """
    if precision is not None and precision not in (*PRECISIONS, BFLOAT16):
        raise UsageError(f"precision {precision!r} is not one of {', '.join((*PRECISIONS, BFLOAT16))}")
    if precision == BFLOAT16:
        return find_model(model, "fp32", "auto" if backend != "torch" else backend)
    unpacked = None
    if model is None:
        folder = Path(clusir.weights.__file__).parent
        whole = folder / (f"{_SHIPPED}.safetensors" if backend == "torch" else f"{_SHIPPED}.onnx")
        if not whole.is_file():
            raise UsageError(f"the shipped model {whole.name} is not in this installation; name one with --model")
    else:
        whole = Path(model)
        if whole.suffix == ".zip" and whole.is_file():
            unpacked = tempfile.TemporaryDirectory(prefix="clusir-bundle-")
            whole = _unzip(whole, Path(unpacked.name))
        if whole.is_dir():
            whole = whole / "model.onnx"
            if not whole.is_file():
                raise UsageError(f"bundle {model}: it holds no model.onnx; make one with clusir-export --onnx OUT")
        elif not whole.is_file():
            raise UsageError(f"model {model}: no such file or folder")
    if whole.suffix == ".safetensors":
        if precision not in (None, "fp32"):
            raise UsageError(
                f"model {whole}: a checkpoint runs in fp32, not {precision}; export it: "
                f"clusir-export --onnx OUT --checkpoint {whole} --precision fp32,{precision}"
            )
        return ModelFiles(whole, whole, whole, _unpacked=unpacked)  # torch answers as all three graphs
    return _with_sidecars(_variant(whole, precision), unpacked)


def variants(files: ModelFiles) -> dict[str, ModelFiles]:
    """By precision, ``files`` and those of the same model beside them; a checkpoint has no others."""
    base, named = _split(files.whole)
    found = {named or "fp32": files}
    for precision in () if files.whole.suffix == ".safetensors" else PRECISIONS:
        path = files.whole.with_name(base + ("" if precision == "fp32" else f".{precision}") + files.whole.suffix)
        if precision not in found and path.is_file():
            found[precision] = _with_sidecars(path, files._unpacked)
    return {precision: found[precision] for precision in PRECISIONS if precision in found}


def _variant(whole: Path, precision: str | None) -> Path:
    base, named = _split(whole)
    if precision is None or precision == (named or "fp32"):
        return whole
    path = whole.with_name(base + ("" if precision == "fp32" else f".{precision}") + whole.suffix)
    if not path.is_file():
        raise UsageError(
            f"model {whole}: there is no {path.name} beside it; make a bundle that has it with "
            f"clusir-export --onnx OUT --precision fp32,{precision}, and name it with --model OUT"
        )
    return path


def _split(whole: Path) -> tuple[str, str]:
    """("model", "int8") of model.int8.onnx; ("model", "") of model.onnx."""
    base, _, last = whole.stem.rpartition(".")
    return (base, last) if base and last in PRECISIONS else (whole.stem, "")


def _with_sidecars(whole: Path, unpacked: tempfile.TemporaryDirectory[str] | None) -> ModelFiles:
    base, _ = _split(whole)
    tile = whole.with_name(f"{whole.stem}.tile{whole.suffix}")
    router = whole.with_name(f"{base}.router{whole.suffix}")  # the router stays fp32 in every precision
    statistics = whole.with_name(f"{base}.statistics{whole.suffix}")  # so does what is pooled
    if tile.is_file() and router.is_file():
        return ModelFiles(whole, tile, router, _unpacked=unpacked)
    if tile.is_file() and statistics.is_file():
        return ModelFiles(whole, tile, statistics=statistics, _unpacked=unpacked)
    return ModelFiles(whole, _unpacked=unpacked)


def _unzip(path: Path, folder: Path) -> Path:
    """Unpack a bundle; the folder that holds model.onnx. Refuses names that leave the folder and absurd sizes."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > _MAX_UNZIPPED_BYTES:
                raise ModelFormatError(f"bundle {path}: it unpacks to more than 4 GB")
            for member in members:
                # Old tools of Windows write backslashes into the names; zipfile makes separators of them there alone.
                member.filename = member.filename.replace("\\", "/")
                target = (folder / member.filename).resolve()
                if not target.is_relative_to(folder.resolve()):
                    raise ModelFormatError(f"bundle {path}: the name {member.filename!r} leaves the bundle")
            for member in members:
                archive.extract(member, folder)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise ModelFormatError(f"bundle {path}: cannot be unpacked ({error})") from error
    found = sorted(folder.rglob("model.onnx"), key=lambda p: len(p.parts))
    return found[0].parent if found else folder
