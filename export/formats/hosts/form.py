"""The host form of a graph: one picture in, one picture out, and nothing that a host has to know besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from clusir.export.formats.hosts.base import Array, HostForm, Source
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.session import Probe
from clusir.spec import ModelSpec

__all__ = ["common_faults", "host_form", "reference"]

_INT64 = np.int64
_ONE = helper.make_tensor("one", TensorProto.INT64, [1], [1])
_ALONE = ("whole", "pooled")  # graphs that answer alone


def common_faults(source: Source, channels: Sequence[int] = (1, 3)) -> list[str]:
    """What keeps a graph from being one picture in, one picture out, of as many ``channels`` as the host takes."""
    spec = source.spec
    faults = []
    if spec.graph not in _ALONE:
        faults.append(f"it is the {spec.graph} graph, which does not answer alone; give the whole graph")
    if spec.channels not in channels:
        faults.append(f"it takes {spec.channels} channel, the host gives {' or '.join(map(str, channels))}")
    if spec.maps:
        faults.append(f"it takes a map beside the picture ({', '.join(spec.maps)}), the host gives the picture alone")
    inputs = {value.name for value in source.model.graph.input} - {t.name for t in source.model.graph.initializer}
    if more := sorted(inputs - {spec.input_name}):
        faults.append(f"it takes a second input, {more[0]}")
    if spec.graph in _ALONE and not more and source.fixed_batch not in (0, 1):
        faults.append(f"it takes {source.fixed_batch} pictures at once, the host gives one")
    return faults


def host_form(source: Source, form: HostForm) -> ModelProto:
    """The source in the host form, without metadata of its own other than the source's.

    Names inside the graph get a prefix, so that the host's names are free.
    """
    spec = source.spec
    inner = onnx.compose.add_prefix(source.model, "net/")
    edit = GraphEdit(inner)
    graph = edit.model.graph
    image, restored = f"net/{spec.input_name}", f"net/{spec.output_name}"
    kept = [value for value in graph.input if value.name != image]
    del graph.input[:]
    batch = form.batch if form.batch and not source.fixed_batch else 1
    sides: list[str | int] = [form.side_px] * 2 if form.side_px else [form.height, form.width]
    graph.input.append(
        helper.make_tensor_value_info(form.input_name, TensorProto.FLOAT, [batch, spec.channels, *sides])
    )
    graph.input.extend(kept)  # weights that are inputs too
    inside = edit.node("Clip", [form.input_name, edit.constant(0, "zero"), edit.constant(1, "one")], "inside")
    low, high = spec.value_range
    plain = (low, high) == (0.0, 1.0)
    given = _padded(edit, form.input_name, inside, spec) if form.any_size else inside
    if not plain:
        steep = edit.node("Mul", [given, edit.constant(high - low, "range")], "steep")
        given = edit.node("Add", [steep, edit.constant(low, "lowest")], "ranged")
    # The answer must not keep its old name as an output while it is an inner value.
    del graph.output[:]
    edit.redirect(image, given)
    answer = restored
    if not plain:
        flat = edit.node("Sub", [answer, edit.constant(low, "lowest")], "from_lowest")
        answer = edit.node("Div", [flat, edit.constant(high - low, "range")], "unranged")
    if form.any_size:
        answer = _cropped(edit, form.input_name, answer, spec.scale)
    if form.highlights:
        answer = edit.node("Add", [answer, edit.node("Sub", [form.input_name, inside], "beyond")], "with_beyond")
    graph.node.append(helper.make_node("Identity", [answer], [form.output_name], name=form.output_name))
    out: list[str | int]
    if form.side_px:
        out = [form.side_px * spec.scale] * 2
    else:
        out = list(sides) if spec.scale == 1 else [f"{side}_x{spec.scale}" for side in sides]
    graph.output.append(
        helper.make_tensor_value_info(form.output_name, TensorProto.FLOAT, [batch, spec.channels, *out])
    )
    edit.drop_unused()
    if form.side_px:
        edit.model.CopyFrom(onnx.shape_inference.infer_shapes(edit.model))
    onnx.checker.check_model(edit.model)
    return edit.model


def _side(edit: GraphEdit, image: str, axis: int) -> str:
    """The length of an axis of ``image``, a tensor of one int64."""
    shape = edit.node("Shape", [image], f"axis{axis}/shape")
    return edit.node("Gather", [shape, edit.constant([axis], f"axis{axis}/which", _INT64)], f"axis{axis}/side", axis=0)


def _padded(edit: GraphEdit, image: str, inside: str, spec: ModelSpec) -> str:
    """``inside`` grown at the bottom and right by reflection, as ``clusir.runtimes.restore.tiling`` does it: index i
    becomes min(i mod p, p - i mod p) with the period p = max(2 (length - 1), 1)."""

    def number(value: int, hint: str, shape: tuple[int, ...] = (1,)) -> str:
        return edit.constant(np.full(shape, value), hint, _INT64)

    size, value = spec.size, inside
    for axis in (2, 3):
        at = f"axis{axis}"
        length = _side(edit, image, axis)
        least = edit.node("Max", [length, number(size.minimum, f"{at}/minimum")], f"{at}/least")
        multiple = number(size.multiple_of, f"{at}/multiple")
        over = edit.node("Add", [least, number(size.multiple_of - 1, f"{at}/rest")], f"{at}/over")
        times = edit.node("Div", [over, multiple], f"{at}/times")
        wanted = edit.node("Mul", [times, multiple], f"{at}/wanted")
        # Not Range: where a host fixes the open axes, ONNX Runtime (1.23, 1.32) takes its folded limit for no scalar.
        ones = edit.node("ConstantOfShape", [wanted], f"{at}/ones", value=_ONE)
        steps = edit.node("CumSum", [ones, number(0, f"{at}/axis", ())], f"{at}/steps", exclusive=1)
        twice = edit.node("Mul", [length, number(2, f"{at}/two")], f"{at}/twice")
        period = edit.node("Sub", [twice, number(2, f"{at}/ends")], f"{at}/full_period")
        period = edit.node("Max", [period, number(1, f"{at}/least_period")], f"{at}/period")
        phase = edit.node("Mod", [steps, period], f"{at}/phase")
        back = edit.node("Sub", [period, phase], f"{at}/back")
        index = edit.node("Min", [phase, back], f"{at}/index")
        value = edit.node("Gather", [value, index], f"{at}/grown", axis=axis)
    return value


def _cropped(edit: GraphEdit, image: str, answer: str, scale: int) -> str:
    """The answer at ``scale`` times the size of ``image``."""
    ends = []
    for axis in (2, 3):
        side = _side(edit, image, axis)
        ends.append(edit.node("Mul", [side, edit.constant([scale], f"crop{axis}/scale", _INT64)], f"crop{axis}"))
    end = edit.node("Concat", ends, "crop/ends", axis=0)
    starts, axes = edit.constant([0, 0], "crop/starts", _INT64), edit.constant([2, 3], "crop/axes", _INT64)
    return edit.node("Slice", [answer, starts, end, axes], "cropped")


def reference(source: Source, form: HostForm) -> Callable[[Array], Array]:
    """What the host form has to answer: the source as it came, on ONNX Runtime, with all that the host form adds done
    in numpy."""
    spec = source.spec
    probe = Probe(source.model, threads=1, optimise=False)

    def run(image: Array) -> Array:
        inside = image.clip(0, 1)
        height, width = image.shape[2:]
        given = inside
        if form.any_size:
            wanted: Sequence[int] = (spec.size.padded(height), spec.size.padded(width))
            given = inside[:, :, _folded(height, wanted[0])][:, :, :, _folded(width, wanted[1])]
        low, high = (np.float32(value) for value in spec.value_range)
        answer = probe.run({spec.input_name: np.ascontiguousarray(given * (high - low) + low)})[spec.output_name]
        answer = (answer - low) / (high - low)
        answer = answer[:, :, : height * spec.scale, : width * spec.scale]
        return np.asarray(answer + (image - inside) if form.highlights else answer, np.float32)

    return run


def _folded(length: int, wanted: int) -> list[int]:
    period = max(2 * (length - 1), 1)
    return [min(i % period, period - i % period) for i in range(wanted)]
