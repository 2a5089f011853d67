"""How large the values of a graph are, without holding them: each is reduced inside the graph as soon as it is there.

Attention over a few dozen windows makes gigabytes of maps for one small picture, of which a runtime holds two or three
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from clusir.export.graph.index import Names
from clusir.export.graph.session import Feeds, Probe

__all__ = ["Magnitude", "Magnitudes", "mask_reaches"]

# What makes finite numbers of -inf, as a mask in front of a softmax is meant.
_FORGIVES = frozenset(("Softmax", "Exp", "Sigmoid", "Clip", "Max", "ReduceMax", "Greater", "Less", "Equal", "IsInf"))


@dataclass(frozen=True)
class Magnitude:
    """Of one value: its largest and its mean magnitude, and how many numbers it is. Both are 0 where it is empty; the
    mean is not finite where one of its numbers is not."""

    largest: float
    mean: float
    size: int


class Magnitudes:
    """A graph that says how large the float values ``tensors`` are. Raises ExportError where it does not run."""

    def __init__(self, model: ModelProto, tensors: Sequence[str]) -> None:
        asked = ModelProto()
        asked.CopyFrom(model)
        names = Names(asked.graph)
        nought, flat = names.fresh("nought"), names.fresh("flat")
        asked.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), nought))
        asked.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), flat))
        del asked.graph.output[:]
        self._asked: dict[str, tuple[str, str, str]] = {}

        def node(op: str, inputs: list[str], **more: Any) -> str:
            made = names.fresh(f"{op.lower()}_of")
            asked.graph.node.append(helper.make_node(op, inputs, [made], name=made, **more))
            return made

        for tensor in tensors:
            row = node("Concat", [node("Reshape", [node("Abs", [tensor]), flat]), nought], axis=0)
            found = (
                node("ReduceMax", [row], keepdims=0),
                node("ReduceSum", [row], keepdims=0),
                node("Size", [tensor]),
            )
            for output, kind in zip(found, (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64), strict=True):
                asked.graph.output.append(helper.make_tensor_value_info(output, kind, []))
            self._asked[tensor] = found
        self._probe = Probe(asked) if self._asked else None

    def run(self, feeds: Feeds) -> dict[str, Magnitude]:
        """Of every value, for one set of inputs (as :meth:`Probe.run` takes them)."""
        if self._probe is None:
            return {}
        made = self._probe.run(feeds)
        found = {}
        for tensor, (largest, total, size) in self._asked.items():
            count = int(made[size])
            found[tensor] = Magnitude(float(made[largest]), float(made[total]) / max(1, count), count)
        return found


def mask_reaches(model: ModelProto) -> frozenset[str]:
    """The values that an infinite constant reaches, such as the -inf of a mask, up to a softmax: they may be infinite
    by design."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    found = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in floats and np.isinf(numpy_helper.to_array(tensor)).any()
    }
    for node in model.graph.node if found else ():  # in order: a node stands behind what it reads
        if node.op_type not in _FORGIVES and found & set(node.input):
            found |= set(node.output)
    return frozenset(found)
