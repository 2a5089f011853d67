"""ncnn's two files: layers with their parameters as text, and their weights as bytes.

ncnn's blobs have one to four axes and no batch: (w), (h, w), (c, h, w) or (c, d, h, w), the last one densest, as in
ONNX. A value 1x3xHxW is a blob (3, H, W); one whose first axis is not 1, or that has one axis alone, keeps them all.
Format: ncnn's docs/developer-guide, param-and-model-file-structure.md and operators.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.export.formats.hosts.child import Refused

__all__ = ["Blob", "Layer", "Layers", "kept"]

Dims = tuple[int, ...]
_MAGIC = "7767517"
_HALF = 0x01306B47  # the mark before weights in float16
_EIGHT = 0x000D4B38  # before weights in int8
_ARRAY = -23300  # what the number of a parameter is taken from where it holds a list
_AXES = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}  # the parameters of a shape, by its number of axes


@dataclass(frozen=True)
class Blob:
    """What a layer answers: its name in the file, and its axes."""

    name: str
    dims: Dims


@dataclass
class Layer:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: Mapping[int, Any]
    weights: list[tuple[NDArray[np.float32], bool]] = field(default_factory=list)  # values, whether a mark precedes
    step: NDArray[np.float32] | None = None  # of the first weights, where they are integers: one an output channel


def kept(shape: Sequence[int]) -> Dims:
    """The axes of a blob that holds an ONNX value of that shape."""
    if not shape:
        return (1,)
    return tuple(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)


class Layers:
    """The layers written so far, and which blob or constant each ONNX value is.

    ``shapes``: of every value; ``constants``: those that are known; ``rounded``: of the weights of layers in integers,
    by name, their steps and the largest magnitude of the layer's input.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        constants: Mapping[str, NDArray[Any]],
        rounded: Mapping[str, tuple[NDArray[np.float32], float]] | None = None,
    ) -> None:
        self.shapes, self.constants, self.rounded = shapes, constants, rounded or {}
        self._layers: list[Layer] = []
        self._values: dict[str, Blob] = {}
        self._views: dict[tuple[str, Dims], Blob] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[Blob],
        parameters: Mapping[int, Any],
        *out: Dims,
        weights: Any = (),
        step: NDArray[np.float32] | None = None,
    ) -> list[Blob]:
        """A layer; ``out``: the axes of each blob that it answers; ``weights``: arrays, each with whether its type is
        marked in the file; ``step``: see :class:`Layer`. Raises Refused for more than four axes."""
        number = len(self._layers)
        if wide := [dims for dims in out if len(dims) > max(_AXES)]:
            raise Refused(f"ncnn has four axes at most, {kind} would have {len(wide[0])}")
        blobs = [Blob(f"b{number}_{index}", tuple(dims)) for index, dims in enumerate(out)]
        made = [(np.ascontiguousarray(array, np.float32).reshape(-1), marked) for array, marked in weights]
        names = [blob.name for blob in inputs], [blob.name for blob in blobs]
        self._layers.append(Layer(kind, f"{kind.lower()}_{number}", *names, parameters, made, step))
        return blobs

    def one(self, kind: str, given: Blob | Sequence[Blob], parameters: Mapping[int, Any], out: Sequence[int]) -> Blob:
        """A layer of one answer and no weights."""
        return self.add(kind, [given] if isinstance(given, Blob) else given, parameters, tuple(out))[0]

    def bind(self, value: str, blob: Blob) -> None:
        """The blob is this ONNX value: its elements in their order; its axes may be written in another way."""
        if math.prod(blob.dims) != math.prod(self.shapes[value]):
            raise Refused(f"{value} has other elements than its shape says")
        self._values[value] = blob

    def alias(self, value: str, other: str) -> None:
        """``value`` is ``other``, under its own shape."""
        self.bind(value, self.held(other))

    def held(self, value: str) -> Blob:
        """An ONNX value as the blob that it is; its axes may be written in another way."""
        return self._values[value] if value in self._values else self.view(value, kept(self.shapes[value]))

    def view(self, value: str, dims: Sequence[int]) -> Blob:
        """An ONNX value as a blob of these axes, which hold its elements in their order."""
        key = value, tuple(dims)
        if key not in self._views:
            if value not in self._values:
                self._values[value] = self._constant(value, key[1])
            self._views[key] = self.reshape(self._values[value], key[1])
        return self._views[key]

    def reshape(self, blob: Blob, dims: Sequence[int]) -> Blob:
        if blob.dims == tuple(dims):
            return blob
        return self.one("Reshape", blob, _shape(dims), dims)

    def array(self, array: NDArray[Any]) -> Blob:
        """A constant as a blob with its axes."""
        dims = array.shape or (1,)
        return self.add("MemoryData", [], _shape(dims), dims, weights=[(array, False)])[0]

    def _constant(self, value: str, dims: Dims) -> Blob:
        if value not in self.constants:
            raise Refused(f"{value} is read before it is computed")
        return self.array(np.asarray(self.constants[value], np.float32).reshape(dims))

    def write(self, given: str, answer: str, half: bool) -> tuple[str, bytes]:
        """The text of ``.param`` and the bytes of ``.bin``; the input and the output blob have these names. ``half``:
        weights whose type is marked (those of convolutions and products with a matrix) are float16."""
        first = self._values[given].name
        last = self.view(answer, kept(self.shapes[answer])).name
        names = {first: given, last: answer}
        lines, content, blobs = [], bytearray(), 0
        readers: dict[str, list[str]] = {}
        for layer in self._layers:
            for name in layer.inputs:
                readers.setdefault(name, []).append(f"{name}_{len(readers.get(name, []))}")
        waiting = {name: list(copies) for name, copies in readers.items() if len(copies) > 1}
        for layer in self._layers:
            inputs = [waiting[name].pop(0) if name in waiting else name for name in layer.inputs]
            lines.append(_line(layer.kind, layer.name, inputs, layer.outputs, layer.parameters, names))
            blobs += len(layer.outputs)
            for index, (array, marked) in enumerate(layer.weights):
                step = layer.step if not index else None
                content += _bytes(array, marked, half) if step is None else _integers(array, step)
            for name in layer.outputs:
                if name in waiting:  # a blob has one reader
                    lines.append(_line("Split", f"split_{name}", [name], readers[name], {}, names))
                    blobs += len(readers[name])
        return "\n".join([_MAGIC, f"{len(lines)} {blobs}", *lines]) + "\n", bytes(content)


def _shape(dims: Sequence[int]) -> dict[int, int]:
    return dict(zip(_AXES[len(dims)], (int(side) for side in dims), strict=True)) if len(dims) in _AXES else {}


def _line(
    kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], values: Mapping[int, Any], names: Any
) -> str:
    blobs = " ".join(names.get(blob, blob) for blob in (*inputs, *outputs))
    told = " ".join(_parameter(number, value) for number, value in sorted(values.items()))
    return re.sub(" +", " ", f"{kind} {name} {len(inputs)} {len(outputs)} {blobs} {told}").rstrip()


def _parameter(number: int, value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(f"ncnn's text has no {value}")
        return f"{number}={value:.8e}"  # fifteen characters at most: ncnn reads no more
    if isinstance(value, int):
        return f"{number}={value}"
    return f"{_ARRAY - number}={','.join(str(int(item)) for item in (len(value), *value))}"


def _bytes(array: NDArray[np.float32], marked: bool, half: bool) -> bytes:
    if not marked:
        return array.astype("<f4").tobytes()
    if not half:
        return (0).to_bytes(4, "little") + array.astype("<f4").tobytes()
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        return (0).to_bytes(4, "little") + array.astype("<f4").tobytes()
    content = array.astype("<f2").tobytes()
    return _HALF.to_bytes(4, "little") + content + bytes(-len(content) % 4)


def _integers(array: NDArray[np.float32], step: NDArray[np.float32]) -> bytes:
    """Weights, the output channel first, as multiples of their steps."""
    integers = np.rint(array.reshape(len(step), -1) / step[:, None])
    if np.abs(integers).max(initial=0) > 127:
        raise Refused("weights in integers are larger than 127 of their steps")
    content = integers.astype(np.int8).tobytes()
    return _EIGHT.to_bytes(4, "little") + content + bytes(-len(content) % 4)
