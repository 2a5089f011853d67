"""Which other files an ONNX file keeps its weights in (``TensorProto.external_data``), read without onnx.

The messages that may hold a tensor are walked by their field numbers; everything else is skipped by its length. The
file is hostile until proven otherwise: names that leave the model's folder, and what is no regular file, are no part of
it (no runtime opens them either).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["external_files"]

# Message: the fields that lead to a tensor, and what each holds. 13 of a tensor is one key and value.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEPTH = 64


def external_files(model: Path) -> list[Path]:
    """The files beside ``model`` that hold weights of it, sorted; empty for what is not ONNX. Raises OSError."""
    if model.suffix == ".xml":  # OpenVINO
        weights = model.with_suffix(".bin")
        return [weights] if weights.is_file() else []
    if model.suffix != ".onnx" or not model.stat().st_size:
        return []
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            names = set(_locations(data, 0, len(data), "model", 0))
        except (IndexError, ValueError):
            return []  # opening it says what is wrong
    folder = model.parent.resolve()
    found = []
    for name in names:
        try:
            path = (folder / name).resolve()
            if path.is_relative_to(folder) and path.is_file():
                found.append(path)
        except (OSError, ValueError):
            continue
    return sorted(found)


def _locations(data: mmap.mmap, at: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    while at < end:
        tag, at = _varint(data, at)
        number, wire = divmod(tag, 8)
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError("longer than the file")
            inner = _FIELDS[kind].get(number)
            if inner == "entry":
                key, value = _entry(data, at, at + length)
                if key == b"location":
                    yield value.decode()
            elif inner is not None:
                yield from _locations(data, at, at + length, inner, depth + 1)
            at += length
        else:
            raise ValueError(f"wire type {wire}")


def _entry(data: mmap.mmap, at: int, end: int) -> tuple[bytes, bytes]:
    texts = {1: b"", 2: b""}
    while at < end:
        tag, at = _varint(data, at)
        length, at = _varint(data, at)
        texts[tag >> 3] = data[at : min(at + length, end)]
        at += length
    return texts[1], texts[2]


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
