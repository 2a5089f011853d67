"""A file that takes RGBA, as one that takes RGB with its alpha as a map, and answers with the colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from clusir.export.graph.tidy import graphs_of
from clusir.export.subjects.onnx_file import Description
from clusir.export.subjects.onnx_ports import WHOLE_NUMBERS, pictures_of
from clusir.spec import OWN_ALPHA

__all__ = ["with_own_alpha"]

_RGBA = 4
_INNER = "rgba/"


def with_own_alpha(model: ModelProto, told: Description) -> tuple[ModelProto, Description]:
    """Of a file whose picture has four channels a copy with two inputs, the colours by their old name and ``alpha``,
    0..1 in float32, and a description of that map, 1 where a picture has none. Of answers of four channels the first
    three are left. All else comes back as it went in, and so does a file with further maps."""
    picture = _picture(model, told)
    if picture is None or told.maps or OWN_ALPHA in _names(model):
        return model, told
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    axis = _axis(picture, told.layout)
    for inner in graphs_of(graph):
        for node in inner.node:
            node.input[:] = [_INNER + name if name == picture.name else name for name in node.input]
    colours = next(value for value in graph.input if value.name == picture.name)
    alpha = ValueInfoProto()
    alpha.CopyFrom(colours)
    alpha.name, alpha.type.tensor_type.elem_type = OWN_ALPHA, TensorProto.FLOAT
    for value, channels in ((colours, _RGBA - 1), (alpha, 1)):
        value.type.tensor_type.shape.dim[axis].dim_value = channels
    graph.input.append(alpha)

    kind = picture.type.tensor_type.elem_type
    low, high = told.range_of(picture)
    numbers = {"span": np.float32(high - low), "low": np.float32(low)}
    steps = [("Mul", ["span"]), ("Add", ["low"]), *([("Round", [])] if kind in WHOLE_NUMBERS else [])]
    nodes, last = [], OWN_ALPHA
    for number, (operator, more) in enumerate(steps):
        into = f"{_INNER}{number}"
        nodes.append(helper.make_node(operator, [last, *(_INNER + name for name in more)], [into]))
        last = into
    nodes.append(helper.make_node("Cast", [last], [f"{_INNER}alpha"], to=kind))
    joined = [picture.name, f"{_INNER}alpha"]
    nodes.append(helper.make_node("Concat", joined, [_INNER + picture.name], axis=axis))
    answers = []
    for value in pictures_of(list(graph.output)):
        at = _axis(value, told.layout)
        if at is None:
            continue
        answers.append((value.name, at))
        value.type.tensor_type.shape.dim[at].dim_value = _RGBA - 1
    for inner in graphs_of(graph):
        for node in inner.node:
            for names in (node.input, node.output):
                names[:] = [_INNER + name if name in dict(answers) else name for name in names]
    ends = {"first": [0], "last": [_RGBA - 1], **{f"axis{at}": [at] for _, at in answers}}
    kept = [
        helper.make_node("Slice", [_INNER + name, *(_INNER + n for n in ("first", "last", f"axis{at}"))], [name])
        for name, at in answers
    ]
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), _INNER + name) for name, v in numbers.items())
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), _INNER + n) for n, v in ends.items())
    inside = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *inside, *kept])
    return made, replace(told, maps={OWN_ALPHA: 1.0})


def _picture(model: ModelProto, told: Description) -> ValueInfoProto | None:
    """The one input that is a picture of four channels, or None."""
    free = [value for value in model.graph.input if value.name not in told.values]
    named = [value for value in free if told.picture in (None, value.name)]
    found = pictures_of(named)
    return found[0] if len(found) == 1 and _axis(found[0], told.layout) is not None else None


def _axis(value: ValueInfoProto, layout: str) -> int | None:
    """Which axis has the four channels, None where none has."""
    lengths = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    axes = [axis for axis, name in ((1, "NCHW"), (3, "NHWC")) if lengths[axis] == _RGBA and layout in ("auto", name)]
    return axes[0] if axes and 3 not in (lengths[1], lengths[3]) else None


def _names(model: ModelProto) -> set[str]:
    return {name for graph in graphs_of(model.graph) for node in graph.node for name in (*node.input, *node.output)}
