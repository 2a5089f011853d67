"""FuseResize: an interpolation of fixed size as two products with constant matrices.

A bilinear or bicubic Resize is linear and separable: R x C^T for each channel, with matrices that the node itself gives
when it is run on unit maps. From small maps the products cost less than the operator, and a part that only some
channels need is cut from the small map. Where the result is a gain, x + g*x, the 1 is added to the small map as well:
interpolation weights sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.errors import ExportError, first_line
from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import copied
from clusir.export.graph.probe import LinearGraph, Region
from clusir.export.graph.session import Probe

__all__ = ["FuseResize"]

# One product costs as many multiply-adds for each output sample as the map has rows. ONNX Runtime's Resize takes 1.4 ns
# for a sample, in which a core does about 75; from 48 rows on nothing is won.
_MOST_ROWS = 48
_OPSET = 13  # from here on region, scales and sizes are optional inputs
_ROUNDING = 1e-5  # of the largest value, between the node and its matrices


class FuseResize(GraphPass):
    """Resize in mode linear or cubic of a small map becomes MatMul, MatMul; a Split behind it goes in front."""

    name = "FuseResize"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        changed = False
        for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "Resize"]:
            axes = _matrices(edit.linear(), value)
            if isinstance(axes, str):
                notes.append(f"{value} stays Resize: {axes}")
                continue
            parts, gains = _rewrite(edit, value, axes)
            edit.drop_unused()
            changed = True
            gained = f", {gains} of them gains with the 1 inside" if gains else ""
            notes.append(f"{value} is products with constant matrices ({parts} parts{gained})")
        return PassResult(edit.model if changed else model, changed, tuple(notes) or ("the graph has no Resize",))


@dataclass(frozen=True)
class _Axes:
    """What a Resize does: rows x map x columns^T, [after, before] each."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]


def _matrices(linear: LinearGraph, value: str) -> _Axes | str:
    """The two matrices of a Resize, or why it stays."""
    node = linear.producer[value]
    before, after = linear.shape(node.input[0]), linear.shape(value)
    if before is None or after is None:
        return "its size is dynamic"
    if len(before) != 4 or before[:2] != after[:2]:
        return "it changes more than height and width"
    if not linear.is_float(node.input[0]):
        return "it is not float32"
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if values.get("mode", b"nearest") not in (b"linear", b"cubic"):
        return f"mode {values.get('mode', b'nearest').decode()} only copies"
    if before[2] > _MOST_ROWS or before[2] > after[2]:
        return f"a product over {before[2]} rows costs as much"
    if values.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return f"its aspect ratio is kept ({values['keep_aspect_ratio_policy'].decode()})"
    if any(o.version < _OPSET for o in linear.opsets if o.domain in ("", "ai.onnx")):
        return f"its inputs are those from before opset {_OPSET}"
    found: list[NDArray[np.float32]] = []
    for axis in (2, 3):
        lone = _lone(linear, node, axis)
        if isinstance(lone, str):
            return lone
        found.append(lone)
    axes = _Axes(*found)
    # Along each axis by itself it is a matrix. That both together are the product of these, a picture shows.
    region = Region((node.input[0],), value, (node,))
    feeds = linear.random(region.sources)
    try:
        answer = linear.run(region, feeds)
    except Exception as error:  # ONNX Runtime's own types, which are not public
        return f"ONNX Runtime does not run it alone ({first_line(error)})"
    expected = axes.rows.astype(np.float64) @ feeds[node.input[0]] @ axes.columns.T.astype(np.float64)
    if not np.abs(answer - expected).max() <= _ROUNDING * np.abs(expected).max():
        return "it is no product of one matrix for the height and one for the width"
    return axes


def _rewrite(edit: GraphEdit, value: str, axes: _Axes) -> tuple[int, int]:
    """Replace one Resize, in the parts that a Split behind it makes; returns the numbers of parts and of gains."""
    linear = edit.linear()
    node = linear.producer[value]
    rows, columns = edit.constant(axes.rows, f"{value}/rows"), edit.constant(axes.columns.T, f"{value}/columns")
    # Not so where pixels lie outside of a crop.
    sums_to_one = all(np.allclose(matrix.sum(1), 1.0, atol=1e-6) for matrix in (axes.rows, axes.columns))
    users = linear.users.get(value, [])
    sources, ends = [node.input[0]], [value]
    over_channels = [next((a.i for a in u.attribute if a.name == "axis"), 0) == 1 for u in users]
    if [u.op_type for u in users] == ["Split"] and over_channels[0] and value not in linear.outputs:
        ends = list(users[0].output)
        sources = [edit.fresh(f"{end}/small") for end in ends]
        split = copied(users[0])
        split.name, split.input[0] = edit.fresh(f"{value}/split"), node.input[0]
        split.output[:] = sources
        edit.model.graph.node.append(split)
    gains = 0
    for source, end in zip(sources, ends, strict=True):
        gained = _gained(linear, end) if sums_to_one else None
        small = edit.node("Add", [source, edit.constant(1.0, f"{end}/one")], f"{end}/gain") if gained else source
        wide = edit.node("MatMul", [small, columns], f"{end}/wide")
        whole = edit.node("MatMul", [rows, wide], f"{end}/resized")
        if gained is None:
            edit.redirect(end, whole)
            continue
        total, other = gained
        edit.redirect(total, edit.node("Mul", [other, whole], f"{total}/scaled"))
        gains += 1
    return len(ends), gains


def _gained(linear: LinearGraph, gain: str) -> tuple[str, str] | None:
    """(x + gain * x, x), if that is all that ``gain`` is used for."""
    users = linear.users.get(gain, [])
    if len(users) != 1 or users[0].op_type != "Mul" or gain in linear.outputs:
        return None
    product = users[0].output[0]
    other = next((i for i in users[0].input if i != gain), None)
    readers = linear.users.get(product, [])
    if other is None or len(readers) != 1 or readers[0].op_type != "Add" or product in linear.outputs:
        return None
    return (readers[0].output[0], other) if set(readers[0].input) == {product, other} else None


def _lone(linear: LinearGraph, node: onnx.NodeProto, axis: int) -> NDArray[np.float32] | str:
    """[after, before]: what the node does along one axis, from its answer to unit maps; or why that is not known."""
    names = [*node.input, "", "", ""][1:4]
    given = [linear.constants.get(name) if name else None for name in names]
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [0, 1, 2, 3])
    axes = [a % 4 for a in axes]
    roi, scales, sizes = (None if g is None or not g.size else g.reshape(-1).astype(np.float64) for g in given)
    if scales is None and names[1] and sizes is None and not names[2]:
        return "its scales are computed"
    crop = any(a.s == b"tf_crop_and_resize" for a in node.attribute if a.name == "coordinate_transformation_mode")
    if crop and roi is None:
        return "its region of interest is computed"
    before, after = linear.shapes[node.input[0]][axis], linear.shapes[node.output[0]][axis]
    shape = [1, before, 1, 1]
    shape[axis] = before
    inputs, constants = ["x", "", "", ""], {}
    if crop and roi is not None:
        ends = np.array([0.0] * 4 + [1.0] * 4)
        if axis in axes:
            ends[[axis, 4 + axis]] = roi[[axes.index(axis), len(axes) + axes.index(axis)]]
        inputs[1], constants["roi"] = "roi", ends.astype(np.float32)
    if scales is not None:
        ratios = np.ones(4, np.float32)
        ratios[axis] = scales[axes.index(axis)] if axis in axes else 1.0
        inputs[2], constants["scales"] = "scales", ratios
    else:
        inputs[3], constants["sizes"] = "sizes", np.array([1, before, *(after if a == axis else 1 for a in (2, 3))])
    lone = copied(node)
    lone.input[:] = inputs
    lone.output[:] = ["y"]
    kept = [copied(a) for a in node.attribute if a.name not in ("axes", "keep_aspect_ratio_policy")]
    del lone.attribute[:]
    lone.attribute.extend(kept)
    model = helper.make_model(
        helper.make_graph(
            [lone],
            "resize",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        ),
        opset_imports=linear.opsets,
        ir_version=9,
    )
    try:
        probe = Probe(model, threads=1)
    except ExportError as error:
        return str(error)
    units = np.eye(before, dtype=np.float32).reshape(shape)
    answer = probe.run({"x": units})["y"]
    if answer.size != before * after:
        return "its size along one axis is not what its scale says"
    return answer.reshape(before, after).T
