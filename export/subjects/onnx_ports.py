"""Which of a foreign graph's inputs and outputs are the picture, how its axes lie, and what else it wants."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from clusir.calibration.planes import channels_fault
from clusir.errors import UnsupportedModelError, UsageError

__all__ = ["WHOLE_NUMBERS", "Ports", "find_ports", "pictures_of"]

_PICTURE_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8)
WHOLE_NUMBERS = (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64)
_CHANNELS, _RGBA = (1, 3), 4


@dataclass(frozen=True)
class Ports:
    """``picture`` and ``answer``: the input and the output that are pictures; ``maps``: inputs of one channel and of
    the picture's size; ``others``: all further inputs.

    ``layout`` is ``NCHW`` or ``NHWC``, ``answer_layout`` that of the answer; ``batch`` and ``size`` (height, width) in
    pixels are 0 where the graph leaves them open.
    """

    picture: ValueInfoProto
    answer: ValueInfoProto
    others: tuple[ValueInfoProto, ...]
    layout: str
    answer_layout: str
    channels: int
    batch: int
    size: tuple[int, int]
    maps: tuple[ValueInfoProto, ...] = ()

    @property
    def planes(self) -> int:
        """Channels of the picture, and maps."""
        return self.channels + len(self.maps)


def find_ports(
    model: ModelProto,
    picture: str | None,
    answer: str | None,
    layout: str,
    given: Collection[str],
    maps: Collection[str] = (),
) -> Ports:
    """The ports of a graph. ``picture`` and ``answer`` name them where more than one could be meant; ``given`` are the
    names of the inputs that have a value, ``maps`` of those that are pictures as well. Raises UsageError that lists
    what is there, UnsupportedModelError where no picture is."""
    inputs = list(model.graph.input)
    for option, names in (("--set", given), ("--map", maps)):
        if unknown := sorted(set(names) - {value.name for value in inputs}):
            raise UsageError(f"{option} {unknown[0]}: the model has no such input; it has {_listed(inputs)}")
    free = [value for value in inputs if value.name not in (*given, *maps)]
    came_in = _chosen(free, picture, "--picture", "takes")
    came_out = _chosen(list(model.graph.output), answer, "--output", "returns")
    others = tuple(value for value in inputs if value.name not in (came_in.name, *maps))
    missing = [value for value in others if value.name not in given]
    if missing:
        raise UsageError(
            f"the model takes {_listed(missing)} beside the picture; give each a number, for example "
            f"--set {missing[0].name}=15" + _or_map(missing, came_in)
        )
    shape = _shape(came_in)
    layout = _layout(came_in.name, shape, layout)
    batch, channels, height, width = shape if layout == "NCHW" else (shape[0], shape[3], shape[1], shape[2])
    if channels not in _CHANNELS:
        raise UnsupportedModelError(
            f"input {came_in.name} has {channels or 'an open number of'} channels ({_text(came_in)}); "
            f"{channels_fault(channels, channels)}"
        )
    if batch > 1:
        raise UnsupportedModelError(f"input {came_in.name} fixes a batch of {batch}; export it again with a batch of 1")
    given_maps = tuple(value for name in maps for value in inputs if value.name == name)
    for value in given_maps:
        if not _is_map(value, came_in):
            raise UsageError(
                f"--map {value.name}: {_text(value)} is no map (four axes, one channel, the picture's size); --set it"
            )
    back = _answer_layout(_shape(came_out), channels, layout)
    return Ports(came_in, came_out, others, layout, back, channels, batch, (height, width), given_maps)


def _answer_layout(shape: list[int], channels: int, layout: str) -> str:
    """That of the picture, unless the answer says the number of channels where the other one has them alone."""
    where = {"NCHW": shape[1], "NHWC": shape[3]}
    other = "NHWC" if layout == "NCHW" else "NCHW"
    return other if where[layout] != channels and where[other] == channels else layout


def _is_map(value: ValueInfoProto, picture: ValueInfoProto) -> bool:
    """Whether an input has one channel and, where that is known, the picture's height and width."""
    shape, like = _shape(value), _shape(picture)
    if len(shape) != 4 or value.type.tensor_type.elem_type not in (*_PICTURE_TYPES, *WHOLE_NUMBERS):
        return False
    axis = 3 if like[3] in _CHANNELS and like[1] not in _CHANNELS else 1
    sides = [n for n in (1, 2, 3) if n != axis]
    return shape[axis] in (0, 1) and all(0 in (shape[n], like[n]) or shape[n] == like[n] for n in sides)


def _or_map(missing: list[ValueInfoProto], picture: ValueInfoProto) -> str:
    found = next((value.name for value in missing if _is_map(value, picture)), None)
    return "" if found is None else f"; of a map a picture may be given: --map {found}"


def _chosen(values: list[ValueInfoProto], name: str | None, option: str, verb: str) -> ValueInfoProto:
    if name is not None:
        found = next((value for value in values if value.name == name), None)
        if found is None:
            raise UsageError(f"{option} {name}: there is no such tensor; the model {verb} {_listed(values)}")
        values = [found]
    pictures = pictures_of(values)
    if not pictures:
        raise UnsupportedModelError(
            f"the model {verb} no picture (float or uint8 of four axes): {_listed(values) or 'nothing'}; export it "
            "again with one picture of batch, channels, height and width"
        )
    if len(pictures) > 1:
        raise UsageError(
            f"the model {verb} {_listed(pictures)}; say which is the picture, for example {option} {pictures[-1].name}"
        )
    return pictures[0]


def pictures_of(values: list[ValueInfoProto]) -> list[ValueInfoProto]:
    """Those that may be pictures: numbers of four axes; of several the one that has three channels, if it is one."""
    pictures = [v for v in values if v.type.tensor_type.elem_type in _PICTURE_TYPES and len(_shape(v)) == 4]
    coloured = [v for v in pictures if 3 in (_shape(v)[1], _shape(v)[3])]  # a map beside them has one channel
    return coloured if len(coloured) == 1 else pictures


def _layout(name: str, shape: list[int], wanted: str) -> str:
    if wanted != "auto":
        return wanted
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS or (shape[3] == _RGBA != shape[1])
    if first and last:
        raise UsageError(f"input {name}: {shape} may be NCHW or NHWC; say which with --layout")
    return "NHWC" if last else "NCHW"


def _shape(value: ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _text(value: ValueInfoProto) -> str:
    element = value.type.tensor_type.elem_type
    if not element:
        return f"{value.name} (no tensor)"
    kind = helper.tensor_dtype_to_np_dtype(element)
    dims = (d.dim_param or str(d.dim_value or "?") for d in value.type.tensor_type.shape.dim)
    return f"{value.name} {kind} {'x'.join(dims) or 'a number'}"


def _listed(values: list[ValueInfoProto]) -> str:
    return ", ".join(map(_text, values))
