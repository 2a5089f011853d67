"""A model in fewer bytes, for a page that others download: the same graphs, half the weights.

A float32 tensor is stored as float16 and widened by a Cast at the head of its graph. A transform matrix, whose values
repeat along (row x column) modulo the length, is stored as one turn of them, from which the graph gathers the matrix,
exactly. Both are constants: a runtime computes them once, as it opens the graph. All graphs share one file of weights.

The graphs are walked by the field numbers of ONNX's messages, so that onnx need not be installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ModelFormatError
from clusir.runtimes.runners.external import check_weights, external_files
from clusir.runtimes.runners.protobuf import fields, number, read_varint, text

__all__ = ["packed"]

_LEAST_BYTES = 1024  # what is smaller stays in its graph, as it is
_ALIGNED_BYTES = 16
# Of float16's own rounding, in the mean: 2^-12. What loses more has values below its normal range.
_MOST_LOST = 2.0**-10

# Fields of ONNX's messages, and values of TensorProto.DataType.
_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _INPUT_NAME = 1, 5, 11, 1
_DIMS, _KIND, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_FLOAT, _INT32, _FLOAT16 = 1, 6, 10


def packed(graphs: Mapping[str, Path], weights: str) -> dict[str, bytes]:
    """``graphs`` (file name: an .onnx file) in fewer bytes, and under the name ``weights`` the file of their weights.

    Answers differ from those of ``graphs`` by the rounding of weights to float16. Raises ModelFormatError for what is
    no ONNX file, or whose weights are not beside it.
    """
    store = _Store()
    made = {}
    for name, path in graphs.items():
        check_weights(path)
        try:
            made[name] = _model(path, store)
        except (OSError, ValueError, LookupError) as error:
            raise ModelFormatError(f"model {path}: it cannot be packed ({error}); use it as it is") from error
    if not store.content:
        return {name: path.read_bytes() for name, path in graphs.items()}
    checksum = hashlib.sha1(store.content, usedforsecurity=False).hexdigest()
    files = {name: b"".join(_written(parts, weights, checksum)) for name, parts in made.items()}
    return {**files, weights: bytes(store.content)}


@dataclass
class _Tensor:
    """An initializer: its values in the file of weights from ``offset`` on, or with it where there is none."""

    name: str
    kind: int
    shape: tuple[int, ...]
    values: bytes
    offset: int | None


_Parts = list["bytes | _Tensor"]


@dataclass
class _Store:
    """The file of weights: equal tensors are stored once."""

    content: bytearray = field(default_factory=bytearray)
    places: dict[bytes, int] = field(default_factory=dict)

    def take(self, name: str, kind: int, shape: tuple[int, ...], values: bytes) -> _Tensor:
        if len(values) < _LEAST_BYTES:
            return _Tensor(name, kind, shape, values, None)
        digest = hashlib.sha256(values).digest()
        if digest not in self.places:
            self.content += bytes(-len(self.content) % _ALIGNED_BYTES)
            self.places[digest] = len(self.content)
            self.content += values
        return _Tensor(name, kind, shape, values, self.places[digest])

    def array(self, name: str, values: NDArray[np.generic]) -> _Tensor:
        kinds = {np.dtype(np.float32): _FLOAT, np.dtype(np.float16): _FLOAT16, np.dtype(np.int32): _INT32}
        return self.take(name, kinds[values.dtype], values.shape, values.tobytes())


def _model(path: Path, store: _Store) -> list[bytes | _Parts]:
    """The fields of a model; its graph as the parts that it will be written from."""
    folder = path.parent.resolve()
    beside = {found.relative_to(folder).as_posix(): found for found in external_files(path)}
    return [
        _graph(content, beside, store) if field_ == _MODEL_GRAPH and isinstance(content, bytes) else raw
        for field_, content, raw in fields(path.read_bytes())
    ]


def _graph(graph: bytes, beside: Mapping[str, Path], store: _Store) -> _Parts:
    """Nodes that widen, then the graph's own fields, its large tensors replaced."""
    fed, opened = set(), {name: path.read_bytes() for name, path in beside.items()}
    for field_, content, _ in fields(graph):
        if field_ == _INPUT and isinstance(content, bytes):
            fed |= {bytes(value) for n, value, _ in fields(content) if n == _INPUT_NAME and isinstance(value, bytes)}
    head: _Parts = []
    rest: _Parts = []
    for field_, content, raw in fields(graph):
        found = _read(content, opened) if field_ == _INITIALIZER and isinstance(content, bytes) else None
        if found is None:
            rest.append(raw)
            continue
        name, kind, shape, values = found
        # Vectors are few bytes, a turn of an earlier packing among them. The name of a feed is taken: nothing can be
        # computed under it.
        if kind != _FLOAT or len(shape) < 2 or len(values) < _LEAST_BYTES or name.encode() in fed:
            rest.append(store.take(name, kind, shape, values))
            continue
        nodes, tensors = _narrowed(name, np.frombuffer(values, "<f4").reshape(shape), store)
        head += nodes
        rest += tensors
    return [*head, *rest]


def _read(tensor: bytes, opened: Mapping[str, bytes]) -> tuple[str, int, tuple[int, ...], bytes] | None:
    """(name, kind, shape, values) of a tensor that is large or in another file; None for one that stays as it is."""
    name, kind, shape, values = "", 0, [], b""
    entries: dict[str, str] = {}
    for number_, content, _ in fields(tensor):
        if number_ == _DIMS:
            shape += [content] if isinstance(content, int) else _packed_numbers(content)
        elif number_ == _KIND and isinstance(content, int):
            kind = content
        elif isinstance(content, bytes):
            if number_ == _NAME:
                name = content.decode()
            elif number_ == _RAW:
                values = content
            elif number_ == _EXTERNAL:
                pair = {n: value.decode() for n, value, _ in fields(content) if isinstance(value, bytes)}
                entries[pair[1]] = pair[2]
    if "location" in entries:
        place = PurePosixPath(entries["location"]).as_posix()
        if place not in opened:
            raise ValueError(f"its weights are in {place}, which is no file of its folder")
        data, at = opened[place], int(entries.get("offset", "0"))
        values = data[at : at + int(entries["length"])] if "length" in entries else data[at:]
    return (name, kind, tuple(shape), values) if entries or len(values) >= _LEAST_BYTES else None


def _packed_numbers(content: bytes) -> list[int]:
    numbers, at = [], 0
    while at < len(content):
        value, at = read_varint(content, at, len(content))
        numbers.append(value)
    return numbers


def _narrowed(name: str, values: NDArray[np.float32], store: _Store) -> tuple[_Parts, _Parts]:
    """(nodes that compute the tensor ``name``, tensors that they compute it from)."""
    turn = _one_turn(values)
    if turn is not None:
        table, steps, along, offsets, length = turn
        constants = {"table": table, "steps": steps, "along": along, "offsets": offsets, "length": length}
        at = {part: f"{name}/{part}" for part in constants}
        nodes = [
            _node("Mul", [at["steps"], at["along"]], f"{name}/product"),
            _node("Mod", [f"{name}/product", at["length"]], f"{name}/turn"),
            _node("Add", [f"{name}/turn", at["offsets"]], f"{name}/place"),
            _node("Gather", [at["table"], f"{name}/place"], name),
        ]
        return list(nodes), [store.array(at[part], value) for part, value in constants.items()]
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost = np.linalg.norm((half.astype(np.float32) - values).ravel())
    if not lost <= _MOST_LOST * np.linalg.norm(values.ravel()):
        return [], [store.array(name, values)]
    to = text(5, text(1, "to") + number(3, _FLOAT) + number(20, 2))  # an attribute of type INT
    return [_node("Cast", [f"{name}/half"], name, to)], [store.array(f"{name}/half", half)]


def _node(kind: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    return text(_NODE, b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, kind) + attribute)


_Turn = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def _one_turn(values: NDArray[np.float32]) -> _Turn | None:
    """(table, steps, along, offsets, length) with values = table[steps * along mod length + offsets], exactly; None
    where there is none that is small.

    One axis of a transform has the samples, n of them, the other the frequencies, alone or in pairs of a real and an
    imaginary part; frequencies that are their own mirror image may have another weight, so they have a table of their
    own.
    """
    if values.ndim != 2:
        return None
    for samples in (0, 1):
        for step in (1, 2):
            n, count = values.shape[samples], values.shape[1 - samples]
            frequency, part = np.divmod(np.arange(count, dtype=np.int32), step)
            alone = (2 * frequency % n == 0).astype(np.int32)
            vectors = (np.arange(n, dtype=np.int32), frequency, (2 * part + alone) * n)
            shapes = ((-1, 1), (1, -1)) if samples == 0 else ((1, -1), (-1, 1))
            steps, along, offsets = (v.reshape(shapes[min(i, 1)]) for i, v in enumerate(vectors))
            place = steps * along % n + offsets
            table = np.zeros(2 * step * n, np.float32)
            table[place] = values
            if 4 * table.size < values.size and np.array_equal(table[place], values):
                return table, steps, along, offsets, np.array([n], np.int32)
    return None


def _written(model: list[bytes | _Parts], place: str, checksum: str) -> Iterator[bytes]:
    """The bytes of a model; the first tensor of its graph says the SHA-1 of the file of weights."""
    for part in model:
        if isinstance(part, bytes):
            yield part
            continue
        content, entries = [], {"location": place, "checksum": checksum}
        for piece in part:
            if isinstance(piece, bytes):
                content.append(piece)
                continue
            tensor = b"".join(number(_DIMS, size) for size in piece.shape) + number(_KIND, piece.kind)
            tensor += text(_NAME, piece.name)
            if piece.offset is None:
                content.append(text(_INITIALIZER, tensor + text(_RAW, piece.values)))
                continue
            told = entries | {"offset": str(piece.offset), "length": str(len(piece.values))}
            entries = {"location": place}
            tensor += b"".join(text(_EXTERNAL, text(1, key) + text(2, value)) for key, value in told.items())
            content.append(text(_INITIALIZER, tensor + number(_LOCATION, 1)))
        yield text(_MODEL_GRAPH, b"".join(content))
