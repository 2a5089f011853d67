"""Adopting an ONNX file that another tool wrote: probed, brought into the standard form, compared with itself as it
came, given its metadata. What comes out runs, embeds and quantises like any other model here.

``clusir-export --onnx OUT.onnx --from theirs.onnx``. Nothing is written that was not compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from clusir.errors import UsageError, ValidationError
from clusir.export.base import Pass, Pipeline
from clusir.export.graph.session import Probe
from clusir.export.graph.tidy import graphs_of
from clusir.export.kept import kept_memory
from clusir.export.options import notes_on_maps, with_maps
from clusir.export.ownership import refuse_foreign
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import CheckStandard, SimplifyGraph, operators
from clusir.export.passes.steady_norm import SteadyNorm
from clusir.export.precision.place import Placed, known_files, place
from clusir.export.precision.run import PrecisionConfig
from clusir.export.rgba import with_own_alpha
from clusir.export.subjects.onnx_file import Description, free_name, in_standard_form, read_onnx
from clusir.export.subjects.onnx_half import in_float32, without_doubles
from clusir.export.subjects.onnx_ports import WHOLE_NUMBERS, Ports, find_ports
from clusir.export.subjects.onnx_probe import (
    Reach,
    natural_picture,
    one_at_a_time,
    probe_answers,
    probe_sizes,
    runner,
)
from clusir.export.tiled import agreeing, steadied, tiled
from clusir.export.undescribed import settled
from clusir.export.validate.compare import Agreement, compare
from clusir.export.validate.compare import check as checked
from clusir.export.validate.pictures import PictureCheck, compare_pictures
from clusir.export.validate.tolerances import tolerance
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array
from clusir.spec import MAX_NUMBER, ModelSpec, SizeRequirements

__all__ = ["Adoption", "AdoptionConfig", "adopt"]

_PROBE_PX = 256
_INTEGER_OPERATORS = frozenset(("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                                "ConvInteger", "MatMulInteger"))  # fmt: skip

Progress = Callable[[str], None]


@dataclass(frozen=True)
class AdoptionConfig:
    """How to adopt. ``tile_px`` and ``halo_px``: None measures them; ``passes``: whether the graph passes run;
    ``backends``: runtimes that must agree; ``precision``: which lower precisions are made beside the file, and how."""

    description: Description = field(default_factory=Description)
    tile_px: int | None = None
    halo_px: int | None = None
    passes: bool = True
    backends: tuple[str, ...] = ("ort", "openvino")
    precision: PrecisionConfig | None = None


@dataclass(frozen=True)
class Adoption:
    """What was written, what was found by running it, and what was compared. ``notes`` are sentences for the report;
    ``placed``: the files, and what lower precisions cost."""

    path: Path
    spec: ModelSpec
    reach: Reach
    agreements: tuple[tuple[str, str, Agreement], ...]
    notes: tuple[str, ...]
    placed: Placed


@kept_memory()
def adopt(source: str | Path, out: str | Path, config: AdoptionConfig, progress: Progress = lambda _: None) -> Adoption:
    """Write ``source`` as the model file ``out`` (``.onnx``), compared with itself as it came on every backend.

    Raises UsageError where the file is absent or a picture, a value or a description is missing, ModelFormatError where
    it is no ONNX, UnsupportedModelError for what cannot be run here, ValidationError where a runtime disagrees,
    BudgetError where INT8 loses more than is allowed.
    """
    source, out = Path(source), Path(out)
    if not config.backends:
        raise UsageError("no backend to compare on; name one with --backends")
    refuse_foreign(out.parent, known_files(out, config.precision), out.stem)
    progress(f"reading {source.name}")
    theirs, told = settled(*with_own_alpha(without_doubles(read_onnx(source)), config.description))
    config = replace(config, description=told)
    wide, half = in_float32(theirs)
    integers = _in_integers(theirs, config)
    with_maps((1, 3, 0, 0), config.description.maps)
    standard, ports = in_standard_form(wide, config.description)
    run = runner(standard)
    progress("probing sizes")
    scale, size = probe_sizes(run, ports.planes, ports.size)
    side = size.static_px or size.padded(_PROBE_PX)
    notes = probe_answers(run, side, ports.planes)
    if not ports.batch and (alone := one_at_a_time(run, side, ports.planes)):
        ports, notes = replace(ports, batch=1), [*notes, alone]
    spec = ModelSpec(
        name=out.stem, size=size, tile_px=side, halo_px=0, channels=ports.channels, scale=scale, dft_form="none",
        maps=tuple(told.maps), map_defaults=tuple(told.maps.values()),
    )  # fmt: skip
    spec = told.numbered(spec)
    progress("graph passes")
    model = _open_axes(standard, ports, spec)
    steps = Pipeline(_steps(model, config.passes))
    model = steps.run(model)
    made = tiled(model, spec, (config.tile_px, config.halo_px), progress)
    spec = made.spec
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / out.name
        onnx.save_model(made.graphs[""], str(staged))
        theirs_ports = find_ports(theirs, told.picture, told.answer, told.layout, tuple(told.values), tuple(told.maps))
        check = PictureCheck(
            _Reference(theirs, theirs_ports, told),
            _sizes(spec.size, spec.tile_px),
            spec.planes,
            ports.batch == 0,
            config.backends,
            tolerance("int8" if integers else "fp16" if half or _in_bytes(ports) else "brought"),
        )
        try:
            agreements = compare_pictures(staged, check, "int8" if integers else "fp32", progress)
        except ValidationError:
            steady = steadied(made)
            if steady is None or integers:
                raise
            progress("comparing again, with norms that add up in blocks")
            made, check = steady, _steady_check(check, wide, ports, told)
            onnx.save_model(made.graphs[""], str(staged))
            agreements = compare_pictures(staged, check, progress=progress)
        made, beside = agreeing(made, check, (config.tile_px, config.halo_px), progress)
        agreements += beside
        agreements += _compare_settings(staged, theirs, theirs_ports, config, check)
    data, spec = made.graphs[""].SerializeToString(), made.spec
    placed = place(
        out,
        {out.name: data, **made.sidecars(out.stem)},
        config.precision,
        lambda path, precision: compare_pictures(path, replace(check.of(precision), pool=made.pool()), precision),
        progress,
    )
    notes += made.notes
    notes += [f"{record.name}: {'; '.join(record.notes)}" for record in steps.records if record.modified]
    if half:
        notes.append("computes in float16, written in float32; --precision fp16 makes a small file beside it")
    if integers:
        notes.append("computes in integers, as it came: compared on photos, to 30 dB")
    numbers = zip(spec.numbers, spec.number_defaults, spec.number_ranges, strict=True)
    notes += [f"takes {name}={value:g} where nobody sets it: clusir-run --set {name}=NUMBER{_within(limits)}"
              for name, value, limits in numbers]  # fmt: skip
    notes += notes_on_maps(dict(zip(spec.maps, spec.map_defaults, strict=True)))
    notes += placed.notes
    return Adoption(out, spec, made.reach, tuple(agreements), tuple(notes), placed)


def _in_integers(theirs: ModelProto, config: AdoptionConfig) -> bool:
    """Whether a file was quantised already. Runtimes round such maps each in its own order, which moves single pixels.
    Raises UsageError where it is to be made smaller still."""
    kinds = {node.op_type for graph in graphs_of(theirs.graph) for node in graph.node}
    found = sorted(kinds & _INTEGER_OPERATORS)
    wanted = [] if config.precision is None else [p for p in config.precision.precisions if p != "fp32"]
    if found and wanted:
        raise UsageError(f"--precision {','.join(wanted)}: the file computes in integers already ({found[0]})")
    return bool(found)


def _in_bytes(ports: Ports) -> bool:
    """Whether the answer is uint8: where it lies between two levels, runtimes choose either."""
    return ports.answer.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def _steady_check(check: PictureCheck, theirs: ModelProto, ports: Ports, told: Description) -> PictureCheck:
    """The comparison with the file as it came, but for its norms: the runtime's own would be the less exact side of it
    where a map is nearly of one colour. On a photo both agree, or ValidationError says that they do not."""
    steady = _Reference(SteadyNorm().apply(theirs).model, ports, told)
    photo = natural_picture(*check.sizes[0], check.channels)
    checked(compare(check.reference(photo), steady(photo), check.bound), "norms written out, photo")
    return replace(check, reference=steady)


def _steps(model: ModelProto, passes: bool) -> list[Pass[ModelProto]]:
    has_dft = "DFT" in operators(model.graph)
    fusing = fusing_passes() if passes and not has_dft else []
    return [SimplifyGraph(), *fusing, CheckStandard(allow_dft=has_dft)]


def _open_axes(model: ModelProto, ports: Ports, spec: ModelSpec) -> ModelProto:
    """The model with its picture's axes named as everywhere here."""
    made = ModelProto()
    made.CopyFrom(model)
    sides = [spec.size.static_px] * 2 if spec.size.static_px else ["height", "width"]
    answer = [spec.scale * spec.size.static_px] * 2 if spec.size.static_px else ["restored_height", "restored_width"]
    ends = ((made.graph.input[0], spec.planes, sides), (made.graph.output[0], spec.channels, answer))
    for value, channels, shape in ends:
        dims = [ports.batch or "batch", channels, *shape]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, dims))
    return made


def _compare_settings(
    path: Path, theirs: ModelProto, ports: Ports, config: AdoptionConfig, check: PictureCheck
) -> list[tuple[str, str, Agreement]]:
    """The written file, its further inputs set to other numbers than its own, against the file as it came."""
    if not ports.others:
        return []
    told = config.description
    other = replace(told, values={name: told.another(name) for name in told.values})
    reference = _Reference(theirs, ports, other)
    height, width = check.sizes[0]
    picture = natural_picture(height, width, check.channels)
    rows = []
    for backend in config.backends:
        with open_runner(path, backend, "cpu") as run:
            numbers = {free_name(name): np.array([value], np.float32) for name, value in other.values.items()}
            found = compare(reference(picture), run.run({"image": picture, **numbers}), check.bound)
        rows.append((backend, "other settings", checked(found, f"{backend}, other settings")))
    return rows


def _within(limits: tuple[float, float]) -> str:
    low, high = limits
    return "" if limits == (-MAX_NUMBER, MAX_NUMBER) else f", {low:g}..{high:g}"


class _Reference:
    """The file as it came, on ONNX Runtime, a picture at a time; its description done in numpy, not in the graph."""

    def __init__(self, theirs: ModelProto, ports: Ports, told: Description) -> None:
        self.ports, self.told = ports, told
        self._probe = Probe(theirs, threads=1, optimise=False)

    def __call__(self, image: Array) -> dict[str, Array]:
        return {"restored": np.concatenate([self._of(image[k : k + 1]) for k in range(len(image))])}

    def _of(self, image: Array) -> Array:
        told, ports = self.told, self.ports
        low, high = told.range_of(ports.picture)
        mean, deviation = (np.asarray(n, np.float32).reshape(1, -1, 1, 1) for n in (told.mean, told.deviation))
        x = image[:, : ports.channels] * np.float32(high - low) + np.float32(low)
        x = (x[:, ::-1] if told.bgr else x) - mean
        x = x / deviation
        x = x.transpose(0, 2, 3, 1) if ports.layout == "NHWC" else x
        feeds = {ports.picture.name: _stored(x, ports.picture)}
        for number, port in enumerate(ports.maps, start=ports.channels):
            plane = image[:, number : number + 1]
            plane = plane.transpose(0, 2, 3, 1) if ports.layout == "NHWC" else plane
            feeds[port.name] = _stored(plane, port)
        for port in ports.others:
            shape = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
            if len(shape) == 4:
                shape = [shape[0] or len(image), shape[1] or 1, shape[2] or image.shape[2], shape[3] or image.shape[3]]
            sides = [side or 1 for side in shape]
            feeds[port.name] = _stored(np.full(sides, told.values[port.name], np.float32), port)
        answer = np.asarray(self._probe.run(feeds)[ports.answer.name], np.float32)
        answer = answer.transpose(0, 3, 1, 2) if ports.answer_layout == "NHWC" else answer
        answer = answer * deviation + mean
        answer = answer[:, ::-1] if told.bgr else answer
        low, high = told.range_of(ports.answer)
        return np.ascontiguousarray((answer - np.float32(low)) / np.float32(high - low))


def _stored(values: Array, port: onnx.ValueInfoProto) -> Array:
    """The numbers in the type of an input: of whole numbers the nearest, of bytes within 0..255."""
    if port.type.tensor_type.elem_type in WHOLE_NUMBERS:
        values = np.round(values)
        values = values.clip(0, 255) if port.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else values
    return np.asarray(values, _dtype(port), order="C")  # of a number alone it stays one


def _dtype(port: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))


def _sizes(size: SizeRequirements, tile: int) -> list[tuple[int, int]]:
    if size.static_px:
        return [(size.static_px, size.static_px)]
    multiple, least = size.multiple_of, size.minimum
    sizes = [(tile, tile), (least, size.padded(least + multiple)), (size.padded(96 + multiple), size.padded(150))]
    return [*sizes, (least, size.padded(size.maximum))] if size.maximum else sizes
