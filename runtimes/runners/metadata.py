"""The ``metadata_props`` of an ONNX file, read without onnx and without a runtime.

Only the outermost protobuf message is walked (ModelProto: 7 = graph, 14 = metadata_props; StringStringEntryProto:
1 = key, 2 = value); the graph is skipped by its length, so a file of any size costs a few reads. The file is hostile
until proven otherwise: every length is checked against the end of the file before anything is allocated.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from clusir.errors import ModelFormatError
from clusir.runtimes.runners.protobuf import LENGTH, spans

__all__ = ["read_metadata"]

_METADATA_PROPS = 14
_GRAPH = 7
_MAX_ENTRY_BYTES = 1 << 20
_MAX_TOTAL_BYTES = 4 << 20
_MAX_FIELDS = 20_000


def read_metadata(path: str | Path) -> dict[str, str]:
    """``{key: value}`` of the model's metadata_props (empty where it has none).

    Raises ModelFormatError where the file cannot be opened or is not an ONNX model.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            return _model(stream, size)
    except OSError as error:
        raise ModelFormatError(f"model {path}: cannot be read ({error.strerror or error})") from error
    except _Malformed as error:
        raise ModelFormatError(f"model {path}: not an ONNX file ({error})") from error


class _Malformed(Exception):
    """The bytes are not protobuf, or not of a ModelProto."""


def _model(stream: BinaryIO, size: int) -> dict[str, str]:
    found: dict[str, str] = {}
    total = fields = 0
    has_graph = False
    while stream.tell() < size:
        fields += 1
        if fields > _MAX_FIELDS:
            raise _Malformed(f"more than {_MAX_FIELDS} fields")
        number, wire = divmod(_varint(stream), 8)
        if number == 0:
            raise _Malformed("field number 0")
        if wire == 0:
            _varint(stream)
        elif wire in (1, 5):
            _skip(stream, 8 if wire == 1 else 4, size)
        elif wire == 2:
            length = _varint(stream)
            if number == _METADATA_PROPS:
                total += length
                if length > _MAX_ENTRY_BYTES or total > _MAX_TOTAL_BYTES:
                    raise _Malformed("metadata larger than 4 MB")
                key, value = _entry(_take(stream, length))
                found[key] = value
            else:
                has_graph |= number == _GRAPH
                _skip(stream, length, size)
        else:
            raise _Malformed(f"wire type {wire}")
    if not has_graph:
        raise _Malformed("it holds no graph")
    return found


def _entry(data: bytes) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    try:
        for span in spans(data, 0, len(data)):
            if span.wire != LENGTH:
                raise _Malformed("a metadata entry that is not two strings")
            texts[span.number] = data[span.first : span.last].decode()
    except UnicodeDecodeError as error:
        raise _Malformed("a metadata string that is not UTF-8") from error
    except ValueError as error:
        raise _Malformed(f"a metadata entry with {error}") from error
    return texts[1], texts[2]


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _take(stream, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise _Malformed("a number of more than ten bytes")


def _take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise _Malformed("it ends too early")
    return data


def _skip(stream: BinaryIO, count: int, size: int) -> None:
    if count > size - stream.tell():
        raise _Malformed("it ends too early")
    stream.seek(count, 1)
