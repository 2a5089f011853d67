"""What is known of the values of a graph that is edited: looked at again only for values that an edit has made.

To look at a whole graph takes a second of a large one, and a pass that rewrites fifty places would look fifty times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import onnx

__all__ = ["Looked", "Values"]


class Looked(NamedTuple):
    """The shapes of a graph's values as far as they are known, the values whose axis 0 is the batch, those that are
    float32; ``sized``: whether height and width, which the graph leaves open, were given for it."""

    shapes: dict[str, tuple[int, ...]]
    open: set[str]
    floats: set[str]
    sized: bool


class Values:
    """``shapes``, ``open`` and ``floats`` of a graph, as ``look`` finds them. ``before``: those of the graph before an
    edit, which are kept; only where another value is asked for is the graph, as it is at this time, looked at."""

    def __init__(
        self, model: onnx.ModelProto, look: Callable[[onnx.ModelProto], Looked], before: Values | None = None
    ) -> None:
        self._look = look
        self._mine = _names(model)
        if before is None:
            self._model, self._found, self._known = None, look(model), self._mine
        else:
            self._model, self._found, self._known = onnx.ModelProto(), before._found, before._known
            self._model.CopyFrom(model)  # what is being edited may be no graph at all when it is asked
        self.sized = self._found.sized
        self.shapes: Mapping[str, tuple[int, ...]] = _Shapes(self)
        self.open: AbstractSet[str] = _Names(self, "open")
        self.floats: AbstractSet[str] = _Names(self, "floats")

    def asked(self, name: object) -> Looked:
        if self._model is not None and name in self._mine and name not in self._known:
            return self.whole()
        return self._found

    def whole(self) -> Looked:
        """Of all values, and of no others."""
        if self._model is not None:
            self._found, self._known, self._model = self._look(self._model), self._mine, None
        return self._found


class _Shapes(Mapping[str, tuple[int, ...]]):
    def __init__(self, values: Values) -> None:
        self._values = values

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._values.asked(name).shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values.asked(name).shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.whole().shapes)

    def __len__(self) -> int:
        return len(self._values.whole().shapes)


class _Names(AbstractSet[str]):
    def __init__(self, values: Values, kind: str) -> None:
        self._values, self._kind = values, kind

    def __contains__(self, name: object) -> bool:
        return name in getattr(self._values.asked(name), self._kind)

    def __iter__(self) -> Iterator[str]:
        return iter(getattr(self._values.whole(), self._kind))

    def __len__(self) -> int:
        return len(getattr(self._values.whole(), self._kind))


def _names(model: onnx.ModelProto) -> frozenset[str]:
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    return frozenset(made | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer})
