"""FuseResize: an interpolation of fixed size as two products with constant matrices.

A bilinear or bicubic Resize is linear and separable: R x C^T for each channel, with matrices that the node itself gives
when it is run on unit maps. From small maps the products cost less than the operator, and a part that only some
channels need is cut from the small map. Where the result is a gain, x + g*x, the 1 is added to the small map as well:
interpolation weights sum to 1.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.probe import LinearGraph

__all__ = ["FuseResize"]

# One product costs as many multiply-adds for each output sample as the map has rows. ONNX Runtime's Resize takes 1.4 ns
# for a sample, in which a core does about 75; from 48 rows on nothing is won.
_MOST_ROWS = 48


class FuseResize(GraphPass):
    """Resize in mode linear or cubic of a small map becomes MatMul, MatMul; a Split behind it goes in front."""

    name = "FuseResize"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        changed = False
        for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "Resize"]:
            linear = edit.linear()
            reason = _reason(linear, value)
            if reason:
                notes.append(f"{value} stays Resize: {reason}")
                continue
            parts, gains = _rewrite(edit, value)
            edit.drop_unused()
            changed = True
            gained = f", {gains} of them gains with the 1 inside" if gains else ""
            notes.append(f"{value} is products with constant matrices ({parts} parts{gained})")
        return PassResult(edit.model if changed else model, changed, tuple(notes) or ("the graph has no Resize",))


def _reason(linear: LinearGraph, value: str) -> str:
    """Why a Resize stays; empty where it can go."""
    node = linear.producer[value]
    before, after = linear.shape(node.input[0]), linear.shape(value)
    if before is None or after is None:
        return "its size is dynamic"
    if len(before) != 4 or before[:2] != after[:2]:
        return "it changes more than height and width"
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if values.get("mode", b"nearest") not in (b"linear", b"cubic"):
        return f"mode {values.get('mode', b'nearest').decode()} only copies"
    if before[2] > _MOST_ROWS or before[2] > after[2]:
        return f"a product over {before[2]} rows costs as much"
    return ""


def _rewrite(edit: GraphEdit, value: str) -> tuple[int, int]:
    """Replace one Resize, in the parts that a Split behind it makes; returns the numbers of parts and of gains."""
    linear = edit.linear()
    node = linear.producer[value]
    before, after = linear.shapes[node.input[0]], linear.shapes[value]
    down, across = _matrix(node, before[2], after[2], 2), _matrix(node, before[3], after[3], 3)
    rows, columns = edit.constant(down, f"{value}/rows"), edit.constant(across.T, f"{value}/columns")
    # Not so where a mode extrapolates with a constant.
    sums_to_one = all(np.allclose(matrix.sum(1), 1.0, atol=1e-6) for matrix in (down, across))
    users = linear.users.get(value, [])
    sources, ends = [node.input[0]], [value]
    over_channels = [next((a.i for a in u.attribute if a.name == "axis"), 0) == 1 for u in users]
    if [u.op_type for u in users] == ["Split"] and over_channels[0] and value not in linear.outputs:
        ends = list(users[0].output)
        sources = [f"{end}/small" for end in ends]
        split = onnx.NodeProto()
        split.CopyFrom(users[0])
        split.name, split.input[0] = f"{value}/split", node.input[0]
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


def _matrix(node: onnx.NodeProto, before: int, after: int, axis: int) -> NDArray[np.float32]:
    """[after, before]: what the node does along one axis, from its answer to unit maps."""
    import onnxruntime

    shape = [1, before, 1, 1]
    shape[axis] = before
    units = np.eye(before, dtype=np.float32).reshape(shape)
    sizes = np.array([1, before, *(after if a == axis else 1 for a in (2, 3))], np.int64)
    lone = onnx.NodeProto()
    lone.CopyFrom(node)
    lone.input[:] = ["x", "", "", "sizes"]
    lone.output[:] = ["y"]
    graph = helper.make_graph(
        [lone],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(sizes, "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {"x": units})[0]
    return answer.reshape(before, after).T
