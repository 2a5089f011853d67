"""A file that takes RGBA, as one that takes RGB with its alpha as a map, and answers with the colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from clusir.export.graph.tidy import prefixed
from clusir.export.subjects.onnx_file import Description
from clusir.export.subjects.onnx_ports import WHOLE_NUMBERS, pictures_of
from clusir.spec import OWN_ALPHA

__all__ = ["with_own_alpha"]

_RGBA = 4
_INNER = "rgba/"


def with_own_alpha(model: ModelProto, told: Description) -> tuple[ModelProto, Description]:
    """Of a file whose picture has four channels a copy with two inputs, the colours by their old name and ``alpha``,
    0..1 in float32, and a description of that map, 1 where a picture has none. Of answers of four channels the first
    three are left. All else comes back as it went in, and so does a file with further maps, or with an input that is
    called ``alpha`` already."""
    found = _picture(model, told)
    if found is None or told.maps or OWN_ALPHA in {value.name for value in model.graph.input}:
        return model, told
    picture, at = found
    made = prefixed(model, _INNER)
    graph = made.graph
    inside = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    for value in model.graph.input:
        if value.name == picture.name:
            graph.input.extend([_of(value, at, _RGBA - 1), _of(value, at, 1, OWN_ALPHA)])
            graph.node.extend(_joined(graph, value, at, told))
        else:
            graph.input.append(value)
            graph.node.append(helper.make_node("Identity", [value.name], [_INNER + value.name]))
    graph.node.extend(inside)
    pictures = {value.name for value in pictures_of(list(model.graph.output))}
    for value in model.graph.output:
        axis = _axis(value, told.layout) if value.name in pictures else None
        graph.output.append(value if axis is None else _of(value, axis, _RGBA - 1))
        graph.node.append(_coloured(graph, value.name, axis))
    return made, replace(told, maps={OWN_ALPHA: 1.0})


def _joined(graph: GraphProto, picture: ValueInfoProto, axis: int, told: Description) -> list[NodeProto]:
    """From the colours and alpha, 0..1, to what the file calls its picture, in its type and range."""
    kind = picture.type.tensor_type.elem_type
    low, high = told.range_of(picture)
    steps: list[tuple[str, list[str]]] = [
        ("Mul", [_constant(graph, "span", np.float32(high - low))]),
        ("Add", [_constant(graph, "low", np.float32(low))]),
        *([("Round", list[str]())] if kind in WHOLE_NUMBERS else []),
    ]
    nodes, last = list[NodeProto](), OWN_ALPHA
    for number, (operator, more) in enumerate(steps):
        nodes.append(helper.make_node(operator, [last, *more], [f"alpha/{number}"]))
        last = f"alpha/{number}"
    nodes.append(helper.make_node("Cast", [last], ["alpha/plane"], to=kind))
    return [*nodes, helper.make_node("Concat", [picture.name, "alpha/plane"], [_INNER + picture.name], axis=axis)]


def _coloured(graph: GraphProto, answer: str, axis: int | None) -> NodeProto:
    """An answer of the file by its old name; of four channels along ``axis`` the first three."""
    if axis is None:
        return helper.make_node("Identity", [_INNER + answer], [answer])
    ends = [_constant(graph, f"{answer}/{n}", np.array([end], np.int64)) for n, end in enumerate((0, _RGBA - 1, axis))]
    return helper.make_node("Slice", [_INNER + answer, *ends], [answer])


def _constant(graph: GraphProto, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"alpha/{name}"))
    return f"alpha/{name}"


def _of(value: ValueInfoProto, axis: int, channels: int, name: str = "") -> ValueInfoProto:
    """A port with another number of channels; by ``name``, another one in float32."""
    made = ValueInfoProto()
    made.CopyFrom(value)
    made.type.tensor_type.shape.dim[axis].dim_value = channels
    if name:
        made.name, made.type.tensor_type.elem_type = name, TensorProto.FLOAT
    return made


def _picture(model: ModelProto, told: Description) -> tuple[ValueInfoProto, int] | None:
    """The one input that is a picture of four channels, and their axis, or None."""
    free = [value for value in model.graph.input if value.name not in told.values]
    found = pictures_of([value for value in free if told.picture in (None, value.name)])
    axis = _axis(found[0], told.layout) if len(found) == 1 else None
    return None if axis is None else (found[0], axis)


def _axis(value: ValueInfoProto, layout: str) -> int | None:
    """Which axis has the four channels, None where none has."""
    lengths = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    axes = [axis for axis, name in ((1, "NCHW"), (3, "NHWC")) if lengths[axis] == _RGBA and layout in ("auto", name)]
    return axes[0] if axes and 3 not in (lengths[1], lengths[3]) else None
