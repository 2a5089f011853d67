"""What somebody else's file leaves open and nobody described, found by running it: how many channels its picture has,
and which of several outputs is the restored one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from clusir.errors import ClusirError
from clusir.export.subjects.onnx_file import Description, in_standard_form, ranked
from clusir.export.subjects.onnx_ports import pictures_of
from clusir.export.subjects.onnx_probe import probe_sizes, runner

__all__ = ["settled"]

_FORMS = (("NCHW", 3), ("NHWC", 3), ("NCHW", 1), ("NHWC", 1))


def settled(model: ModelProto, told: Description) -> tuple[ModelProto, Description]:
    """The model with the channels of its picture, and the description with the name of its output: the first form of a
    picture that it runs on, and the one output that is a whole number of times as large. Both as they came where they
    say it themselves, or where nothing else runs."""
    for made in _forms(model, told):
        outputs = pictures_of(list(made.graph.output)) if told.answer is None else []
        if made is model and len(outputs) < 2:
            return model, told
        names = [value.name for value in outputs] if len(outputs) > 1 else [told.answer]
        fitting = [name for name in names if _runs(made, replace(told, answer=name))]
        if len(fitting) == 1:
            return made, replace(told, answer=fitting[0])
        if fitting:
            return made, told
    return model, told


def _forms(model: ModelProto, told: Description) -> Iterator[ModelProto]:
    """The model itself where its picture has channels, else one for each number that a picture may have."""
    values = [v for v in model.graph.input if v.name not in (*told.values, *told.maps)]
    values = [v for v in values if v.name == told.picture] if told.picture is not None else values
    open_ones = [value for value in values if _is_open(value)]
    if len(values) != 1 or not open_ones:
        yield model
        return
    for layout, channels in _FORMS:
        if told.layout not in ("auto", layout):
            continue
        made = ModelProto()
        made.CopyFrom(model)
        value = next(v for v in made.graph.input if v.name == open_ones[0].name)
        _fill(value, layout, channels)
        yield ranked(made)


def _is_open(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return kind.elem_type != TensorProto.UNDEFINED
    lengths = [dim.dim_value for dim in kind.shape.dim]
    return len(lengths) == 4 and lengths[1] == lengths[3] == 0


def _fill(value: ValueInfoProto, layout: str, channels: int) -> None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, ["batch", *"abc"]))
    dim = value.type.tensor_type.shape.dim[1 if layout == "NCHW" else 3]
    dim.Clear()
    dim.dim_value = channels


def _runs(model: ModelProto, told: Description) -> bool:
    """Whether the graph answers a picture with one whose sides are a whole number of times as long."""
    try:
        standard, ports = in_standard_form(model, told)
        probe_sizes(runner(standard), ports.planes, ports.size)
    except ClusirError:
        return False
    return True
