"""Resize as two products with constant matrices: what ONNX Runtime makes of the unit matrix is that matrix, whatever
the mode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.session import Probe
from clusir.export.passes.plain.base import Shapes

__all__ = ["resize", "resize_kind", "uneven"]


def _along(node: onnx.NodeProto, opset: int, before: int, after: int, scale: float | None) -> NDArray[np.float32]:
    """The matrix after x before of a Resize along one axis."""
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "axes"}
    asked = ("scales", [1.0, 1.0, scale, 1.0], np.float32) if scale else ("sizes", [1, 1, after, before], np.int64)
    inputs = ["unit", "", asked[0]] if scale else ["unit", "", "", asked[0]]
    made = helper.make_node("Resize", inputs, ["out"], **kept)
    shape = [1, 1, before, before]
    graph = helper.make_graph(
        [made], "resize", [helper.make_tensor_value_info("unit", 1, shape)],
        [helper.make_tensor_value_info("out", 1, [1, 1, after, before])],
        [numpy_helper.from_array(np.asarray(asked[1], asked[2]), asked[0])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    unit = np.eye(before, dtype=np.float32)[None, None]
    return np.asarray(Probe(model, threads=1).run({"unit": unit})["out"][0, 0], np.float32)


def _scales(edit: GraphEdit, node: onnx.NodeProto) -> list[float | None]:
    """What a Resize is told to scale the last two of four axes by; None where it is told their lengths."""
    if len(node.input) < 3 or not node.input[2] or not edit.array(node.input[2]).size:
        return [None, None]
    told = [float(scale) for scale in edit.array(node.input[2])]
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), list(range(len(told))))
    given = {axis % 4: scale for axis, scale in zip(axes, told, strict=True)}
    return [given.get(2, 1.0), given.get(3, 1.0)]


def uneven(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> bool:
    """Whether a Resize scales by a factor that the lengths before and behind do not give: runtimes that know only the
    lengths would place the pixels elsewhere."""
    lengths = zip(shapes[node.input[0]][2:], shapes[node.output[0]][2:], _scales(edit, node), strict=True)
    return any(scale is not None and abs(scale * before - after) > 1e-6 * after for before, after, scale in lengths)


def resize(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    given, made = shapes[node.input[0]], shapes[node.output[0]]
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bad = values.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    policy = values.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
    if len(given) != 4 or given[:2] != made[:2] or bad or policy:
        return ""
    scales = _scales(edit, node)
    opset = edit.model.opset_import[0].version
    down, across = (
        _along(node, opset, given[axis], made[axis], scale) for axis, scale in zip((2, 3), scales, strict=True)
    )
    value, hint = node.input[0], node.output[0]
    if not np.array_equal(down, np.eye(*down.shape, dtype=np.float32)):
        value = edit.node("MatMul", [edit.constant(down[None, None], f"{hint}/down"), value], f"{hint}/tall")
    if not np.array_equal(across, np.eye(*across.shape, dtype=np.float32)):
        value = edit.node("MatMul", [value, edit.constant(across.T, f"{hint}/across")], f"{hint}/wide")
    return value


_REPEATS = {
    ("asymmetric", "floor"),
    *((places, f"round_prefer_{way}") for places in ("half_pixel", "pytorch_half_pixel") for way in ("floor", "ceil")),
}


def resize_kind(node: onnx.NodeProto, given: Sequence[int], made: Sequence[int]) -> str:
    """What a Resize of maps 1xCxHxW is in the terms of runtimes: ``repeats`` (every pixel two, three, ... times),
    ``linear``, ``cubic`` (PyTorch's) between the middles of pixels, ``linear corners``, ``cubic corners`` between the
    outermost ones; "" for another."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode, rounding, places = (
        values.get(name, default).decode()
        for name, default in (
            ("mode", b"nearest"),
            ("nearest_mode", b"round_prefer_floor"),
            ("coordinate_transformation_mode", b"half_pixel"),
        )
    )
    odd = values.get("antialias", 0) or values.get("exclude_outside", 0) or len(given) != 4
    if odd or tuple(given[:2]) != tuple(made[:2]):
        return ""
    if mode == "nearest":
        whole = not any(there % here for here, there in zip(given[2:], made[2:], strict=True))
        return "repeats" if whole and (places, rounding) in _REPEATS else ""
    if mode == "cubic" and abs(values.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        return ""
    if places == "align_corners":
        return f"{mode} corners"
    return mode if places in ("half_pixel", "pytorch_half_pixel") else ""
