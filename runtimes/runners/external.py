"""Which other files an ONNX file keeps its weights in (``TensorProto.external_data``), read without onnx.

The messages that may hold a tensor are walked by their field numbers; everything else is skipped by its length. The
file is hostile until proven otherwise: names that leave the model's folder, and what is no regular file, are no part of
it (no runtime opens them either).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from clusir.errors import ModelFormatError
from clusir.runtimes.runners.digests import digest_of
from clusir.runtimes.runners.protobuf import LENGTH, spans

__all__ = ["DATA_SUFFIX", "check_weights", "external_files", "weights_are_summed"]

DATA_SUFFIX = ".data"  # behind the name of a graph: what it and the graphs beside it keep their weights in

# Message: the fields that lead to a tensor, and what each holds. 13 of a tensor is one key and value.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# Where the weights of an export are; walking all nodes takes longer than opening a small graph may.
_INITIALIZERS = {"model": {7: "graph"}, "graph": {5: "tensor"}}
_MESSAGES = {"all": _FIELDS, "initializers": _INITIALIZERS}
_ENTRY = 13
_LOCATION = b"\x0a\x08location"  # the key of such an entry, as it stands in the file
_LOCATIONS = re.compile(re.escape(_LOCATION))
_DEPTH = 64


def external_files(model: Path) -> list[Path]:
    """The files beside ``model`` that hold weights of it, sorted; empty for what is not ONNX. Raises OSError."""
    if model.suffix == ".xml":  # OpenVINO
        weights = model.with_suffix(".bin")
        return [weights] if weights.is_file() else []
    found = (_inside(model, name) for name, _ in _named(model, "all"))
    return sorted(path for path in found if path is not None and path.is_file())


def check_weights(model: Path) -> None:
    """Raise ModelFormatError where a file of weights is not beside ``model``, or is not the one that it was written
    with: where the graph gives the file's SHA-1 (``checksum``), as ``clusir-export`` does."""
    try:
        for name, checksum in sorted(_named(model, "initializers")):
            path = _inside(model, name)
            if path is None:
                continue  # outside: the runtime refuses it
            if not path.is_file():
                raise ModelFormatError(f"model {model}: its weights are in {name}, which is not beside it; copy both")
            # A file of another export has the same length.
            if checksum and digest_of(path, "sha1").hex() != checksum:
                raise ModelFormatError(
                    f"model {model}: {name} holds the weights of another export (its SHA-1 differs); copy both "
                    "files together, or export again"
                )
    except OSError as error:
        raise ModelFormatError(f"model {model}: its weights cannot be read ({error.strerror or error})") from error


def weights_are_summed(model: Path) -> bool:
    """Whether ``model`` says the checksum of every file that it keeps weights in, so that its own bytes tell its
    weights. Raises OSError."""
    return model.read_bytes().count(_LOCATION) == len(_tensors_of(model, "initializers")) and all(
        checksum for _, checksum in _named(model, "initializers")
    )


def _inside(model: Path, name: str) -> Path | None:
    """The file ``name`` in the folder of ``model``; None where it would lie elsewhere."""
    folder = model.parent.resolve()
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError):
        return None
    return path if path.is_relative_to(folder) else None


def _tensors_of(model: Path, which: str) -> tuple[tuple[str, str], ...]:
    """(location, checksum or "") of the tensors of an ONNX file that lie in another file. Raises OSError."""
    state = model.stat()
    if model.suffix != ".onnx" or not state.st_size:
        return ()
    return _read(model, which, (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=16)
def _read(model: Path, which: str, state: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """What :func:`_tensors_of` says of a file as it is."""
    # Nodes hold most of a graph, and hardly ever a tensor that lies elsewhere: each such one has its key.
    found = () if which == "initializers" else _read(model, "initializers", state)
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if which != "initializers" and sum(1 for _ in _LOCATIONS.finditer(data)) == len(found):
            return found
        try:
            tensors = list(_tensors(data, _MESSAGES[which], (0, len(data)), "model", 0))
            return tuple((name.decode(), checksum.decode()) for name, checksum in tensors)
        except ValueError:
            return ()  # opening it says what is wrong


def _named(model: Path, which: str) -> set[tuple[str, str]]:
    """The files of :func:`_tensors_of`, each once. Raises OSError."""
    found = set(_tensors_of(model, which))
    summed = {name for name, checksum in found if checksum}
    return {(name, checksum) for name, checksum in found if checksum or name not in summed}


def _tensors(
    data: mmap.mmap, messages: Mapping[str, Mapping[int, str]], span: tuple[int, int], kind: str, depth: int
) -> Iterator[tuple[bytes, bytes]]:
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    for number, first, last in _fields(data, *span):
        inner = messages[kind].get(number)
        if inner == "tensor":
            entries = dict(_entry(data, start, stop) for n, start, stop in _fields(data, first, last) if n == _ENTRY)
            if b"location" in entries:
                yield entries[b"location"], entries.get(b"checksum", b"")
        elif inner is not None:
            yield from _tensors(data, messages, (first, last), inner, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, one past the last) of the fields of a message that have a length."""
    return ((span.number, span.first, span.last) for span in spans(data, at, end) if span.wire == LENGTH)


def _entry(data: mmap.mmap, at: int, end: int) -> tuple[bytes, bytes]:
    texts = {number: data[first:last] for number, first, last in _fields(data, at, end)}
    return texts.get(1, b""), texts.get(2, b"")
