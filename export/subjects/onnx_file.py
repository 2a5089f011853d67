"""Somebody else's ONNX file: read whole, and given the one form that every runner here takes.

The form: one picture in, float32 RGB in 0..1, BxCxHxW, named ``image``; one picture out, named ``restored``. What the
file wants instead (another range, mean and deviation, BGR, the channels last, float16, further inputs) is computed in
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    inliner,
    numpy_helper,
)
from onnx.external_data_helper import uses_external_data

from clusir.errors import ModelFormatError, UnsupportedModelError, UsageError, first_line
from clusir.export.graph.tidy import graphs_of, prefixed, tidied
from clusir.export.subjects.onnx_ports import WHOLE_NUMBERS, Ports, find_ports
from clusir.spec import MAX_NUMBER, MOST_NUMBERS, TENSORS, ModelSpec

__all__ = ["Description", "free_name", "in_standard_form", "ranked", "read_onnx"]

_OPSET = 18
_LATEST_OPSET = 23
_IR_VERSION = 10
_PREFIX = "net/"


@dataclass(frozen=True)
class Description:
    """What a file wants that its graph does not say.

    ``value_range``: what black and white are as numbers, in and out (of uint8, 0 and 255 where 0..1 is said).
    ``mean`` and ``deviation``, a number or one a channel, in units of that range: the input is (x - mean) / deviation,
    the answer is taken back likewise. ``bgr``: the order of three channels. ``layout``: ``NCHW``, ``NHWC`` or ``auto``
    (as the shapes say). ``values``: numbers for further inputs, ``limits``: the least and the most that some may be;
    ``maps``: those that are pictures of one channel as large as the picture, 0..1, and what fills them where nobody
    gives one. ``picture`` and ``answer``: names of the input and the output that are pictures, where several could
    be.
    """

    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    bgr: bool = False
    layout: str = "auto"
    values: Mapping[str, float] = field(default_factory=dict)
    picture: str | None = None
    answer: str | None = None
    maps: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.value_range
        if not (np.isfinite([low, high]).all() and high > low):
            raise UsageError(f"range {low:g}..{high:g} does not rise; give for example --range 0..255")
        if self.layout not in ("auto", "NCHW", "NHWC"):
            raise UsageError(f"layout {self.layout!r} is not auto, NCHW or NHWC")
        for name, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if len(numbers) not in (1, 3) or not np.isfinite(numbers).all():
                raise UsageError(f"{name} {numbers} is not one number, or three")
        if not all(number > 0 for number in self.deviation):
            raise UsageError(f"deviation {self.deviation} is not above 0")
        if len(self.values) > MOST_NUMBERS:
            raise UsageError(f"--set: {len(self.values)} numbers, {MOST_NUMBERS} at most are inputs of a file")
        for name, value in self.values.items():
            low, high = self._within(name)
            if not -MAX_NUMBER <= low <= value <= high <= MAX_NUMBER:
                raise UsageError(
                    f"--set {name}={value:g}: it is not within {low:g}..{high:g}, or that leaves -1e6..1e6"
                )

    def _within(self, name: str) -> tuple[float, float]:
        return self.limits.get(name, (-MAX_NUMBER, MAX_NUMBER))

    def numbered(self, spec: ModelSpec) -> ModelSpec:
        """``spec`` of a model that takes the numbers beside the picture."""
        return replace(
            spec,
            numbers=tuple(map(free_name, self.values)),
            number_defaults=tuple(self.values.values()),
            number_ranges=tuple(map(self._within, self.values)),
        )

    def another(self, name: str) -> float:
        """A number for an input that is not its default, and is allowed."""
        low, high = self._within(name)
        other = min(max(0.75 * self.values[name] + 0.01, low), high)
        return other if other != self.values[name] else 0.5 * (low + min(high, low + 1))

    def range_of(self, port: ValueInfoProto) -> tuple[float, float]:
        """What black and white are at an input or an output."""
        in_bytes = port.type.tensor_type.elem_type == TensorProto.UINT8
        return (0.0, 255.0) if in_bytes and self.value_range == (0.0, 1.0) else self.value_range


def read_onnx(path: str | Path) -> ModelProto:
    """The model of a file, its external data and its functions in it, at opset 18 at least where it converts.

    Raises UsageError where there is no such file, ModelFormatError where it is no valid ONNX or lacks its data,
    UnsupportedModelError for operators outside standard ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"model {path}: no such file")
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ModelFormatError(
            f"model {path}: its weights file is missing ({error}); keep it beside the model"
        ) from error
    except Exception as error:  # protobuf, onnx and the checker of external data raise types of their own
        if _has_external_data(path):
            raise ModelFormatError(
                f"model {path}: its weights cannot be read ({first_line(error, 200)}); keep the files of weights, "
                "whole, in the model's folder"
            ) from error
        raise ModelFormatError(
            f"model {path}: it is not an ONNX file that can be read ({first_line(error, 200)})"
        ) from error
    if not model.graph.node:
        raise ModelFormatError(f"model {path}: it is not an ONNX file, or an empty one")
    model = tidied(inliner.inline_local_functions(model) if model.functions else model)
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain})
    if foreign:
        raise UnsupportedModelError(
            f"model {path}: {', '.join(foreign[:4])} {'is' if len(foreign) == 1 else 'are'} outside standard ONNX; "
            "export it again without runtime-specific operators"
        )
    _refuse_training(model, path)
    return ranked(_at_least_opset(model, path))


def _refuse_training(model: ModelProto, path: Path) -> None:
    """A graph that drops values or norms by the batch at hand answers otherwise each time, or in another batch."""
    for graph in graphs_of(model.graph):
        on = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.BOOL and any(
            numpy_helper.to_array(tensor).ravel())}  # fmt: skip
        for node in graph.node:
            drops = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in on
            if drops or any(a.name == "training_mode" and a.i for a in node.attribute):
                raise UnsupportedModelError(
                    f"model {path}: {node.op_type} computes as in training; export it again in eval mode"
                )


def ranked(model: ModelProto) -> ModelProto:
    """The model with the shapes of its outputs, where it does not say them."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # what has no shape is then told of as such
        return model


def _has_external_data(path: Path) -> bool:
    """Whether a file is a model that keeps weights in other files."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:
        return False
    return any(uses_external_data(tensor) for tensor in model.graph.initializer)


def _at_least_opset(model: ModelProto, path: Path) -> ModelProto:
    version = next((o.version for o in model.opset_import if not o.domain), 1)
    if version > _LATEST_OPSET:
        raise UnsupportedModelError(
            f"model {path}: opset {version} is newer than {_LATEST_OPSET}, the last one read here; export it again "
            f"with opset {_OPSET} to {_LATEST_OPSET}"
        )
    if version < _OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _OPSET)
        except Exception as error:  # the converter raises RuntimeError and its own ConvertError
            raise UnsupportedModelError(
                f"model {path}: opset {version} cannot be brought to {_OPSET} ({first_line(error, 200)}); "
                f"export it again with opset {_OPSET}"
            ) from error
    model.ir_version = min(model.ir_version, _IR_VERSION)
    return model


def in_standard_form(model: ModelProto, told: Description) -> tuple[ModelProto, Ports]:
    """(the model with one input ``image`` and one output ``restored``, the pictures' ports of the file as it came).

    Raises UsageError where an input has no value, or where more than one tensor could be the picture; each message
    names what is there.
    """
    ports = find_ports(model, told.picture, told.answer, told.layout, tuple(told.values), tuple(told.maps))
    inner = prefixed(model, _PREFIX)
    graph = inner.graph
    channels = ports.channels
    if told.bgr and channels != 3:
        raise UsageError(f"--bgr needs three channels, the model takes {channels}")
    in_bytes = [p.name for p in (ports.picture, ports.answer) if p.type.tensor_type.elem_type == TensorProto.UINT8]
    if in_bytes and (any(told.mean) or any(d != 1 for d in told.deviation)):
        raise UsageError(f"{in_bytes[0]} is uint8, which has neither --mean nor --deviation; leave them out")
    before = _Chain("host/colours" if ports.maps else "image", f"{_PREFIX}{ports.picture.name}", "in")
    low, high = told.range_of(ports.picture)
    before.multiply(high - low)
    before.add(low)
    before.reverse_channels(told.bgr)
    before.add(*(-m for m in told.mean))
    before.multiply(*(1 / d for d in told.deviation))
    before.transpose(ports.layout == "NHWC", (0, 2, 3, 1))
    before.leave(ports.picture.type.tensor_type.elem_type)
    after = _Chain(f"{_PREFIX}{ports.answer.name}", "restored", "out")
    after.cast(TensorProto.FLOAT, ports.answer.type.tensor_type.elem_type)
    after.transpose(ports.answer_layout == "NHWC", (0, 3, 1, 2))
    after.multiply(*told.deviation)
    after.add(*told.mean)
    after.reverse_channels(told.bgr)
    low, high = told.range_of(ports.answer)
    after.add(-low)
    after.multiply(1 / (high - low))
    nodes, constants, settable = _further_inputs(ports, told.values)
    nodes += _maps(ports, constants)
    inside = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before.done(), *inside, *after.done()])
    graph.initializer.extend([*before.constants, *constants, *after.constants])
    del graph.input[:], graph.output[:], graph.value_info[:], inner.metadata_props[:]
    height, width = (side or name for side, name in zip(ports.size, ("height", "width"), strict=True))
    graph.input.append(_port("image", [ports.batch or "batch", ports.planes, height, width]))
    graph.input.extend(settable)
    graph.output.append(_port("restored", [ports.batch or "batch", channels, None, None]))
    return inner, ports


class _Chain:
    """Nodes on a picture BxCxHxW one after another; steps that change nothing add none."""

    def __init__(self, start: str, end: str, name: str) -> None:
        self.start, self.end, self.name = start, end, name
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def _step(self, kind: str, *constants: TensorProto, **attributes: Any) -> None:
        self.constants += constants
        source = self.nodes[-1].output[0] if self.nodes else self.start
        name = f"host/{self.name}/{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, [source, *(c.name for c in constants)], [name], name=name, **attributes)
        )

    def _constant(self, numbers: tuple[float, ...]) -> TensorProto:
        array = np.asarray(numbers, np.float32).reshape(1, -1, 1, 1)
        return numpy_helper.from_array(array, f"host/{self.name}/c{len(self.constants)}")

    def multiply(self, *factors: float) -> None:
        if any(f != 1 for f in factors):
            self._step("Mul", self._constant(factors))

    def add(self, *terms: float) -> None:
        if any(t != 0 for t in terms):
            self._step("Add", self._constant(terms))

    def reverse_channels(self, wanted: bool) -> None:
        if wanted:
            order = numpy_helper.from_array(np.array([2, 1, 0], np.int64), f"host/{self.name}/order")
            self._step("Gather", order, axis=1)

    def transpose(self, wanted: bool, order: tuple[int, ...]) -> None:
        if wanted:
            self._step("Transpose", perm=order)

    def cast(self, to: int, source: int) -> None:
        if to != source:
            self._step("Cast", to=to)

    def leave(self, kind: int) -> None:
        """Become ``kind``: whole numbers are the nearest ones, of bytes within 0..255."""
        if kind in WHOLE_NUMBERS:
            self._step("Round")
        if kind == TensorProto.UINT8:
            ends = (numpy_helper.from_array(np.asarray(n, np.float32), f"host/{self.name}/end{n}") for n in (0, 255))
            self._step("Clip", *ends)
        self.cast(kind, TensorProto.FLOAT)

    def done(self) -> list[NodeProto]:
        if not self.nodes:
            self._step("Identity")
        self.nodes[-1].output[0] = self.end
        return self.nodes


def _further_inputs(
    ports: Ports, values: Mapping[str, float]
) -> tuple[list[NodeProto], list[TensorProto], list[ValueInfoProto]]:
    """Every other input, by its own name, with the number that it has where nobody gives another: an initializer that
    is a graph input too. What is a map is filled in the picture's size."""
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    settable: list[ValueInfoProto] = []
    for port in ports.others:
        element = port.type.tensor_type.elem_type
        shape = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
        name, inner = free_name(port.name), f"{_PREFIX}{port.name}"
        a_map = len(shape) == 4 and 0 in shape[2:]
        sides = [1, 1, 1, 1] if a_map else [side or 1 for side in shape]
        number = round(values[port.name]) if element in WHOLE_NUMBERS else values[port.name]
        value = np.full(sides, number, helper.tensor_dtype_to_np_dtype(element))
        constants.append(numpy_helper.from_array(value, name))
        settable.append(helper.make_tensor_value_info(name, element, sides))
        if not a_map:
            nodes.append(helper.make_node("Identity", [name], [inner], name=f"host/{port.name}"))
            continue
        for index, (start, end) in enumerate(((0, 1), (2, 4))):
            part = f"host/{port.name}/{index}"
            nodes.append(helper.make_node("Shape", ["image"], [part], start=start, end=end))
        middle = numpy_helper.from_array(np.array([shape[1] or 1], np.int64), f"host/{port.name}/channels")
        constants.append(middle)
        parts = [f"host/{port.name}/0", middle.name, f"host/{port.name}/1"]
        nodes.append(helper.make_node("Concat", parts, [f"host/{port.name}/shape"], axis=0))
        nodes.append(helper.make_node("Expand", [name, f"host/{port.name}/shape"], [inner], name=f"host/{port.name}"))
    return nodes, constants, settable


def _maps(ports: Ports, constants: list[TensorProto]) -> list[NodeProto]:
    """The picture and its maps as they lie in the one input, each under the name that the graph knows it by."""
    if not ports.maps:
        return []
    sizes = numpy_helper.from_array(np.array([ports.channels, *(1 for _ in ports.maps)], np.int64), "host/planes")
    constants.append(sizes)
    planes = [f"host/map/{port.name}" for port in ports.maps]
    nodes = [helper.make_node("Split", ["image", sizes.name], ["host/colours", *planes], name="host/planes", axis=1)]
    for port, plane in zip(ports.maps, planes, strict=True):
        chain = _Chain(plane, f"{_PREFIX}{port.name}", f"map/{port.name}")
        chain.transpose(ports.layout == "NHWC", (0, 2, 3, 1))
        chain.leave(port.type.tensor_type.elem_type)
        constants += chain.constants
        nodes += chain.done()
    return nodes


def free_name(name: str) -> str:
    """What a further input is called in the standard form, where the picture's own names are taken."""
    return f"{name}_" if name in ("image", "restored", *TENSORS) else name


def _port(name: str, shape: list[int | str | None]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
