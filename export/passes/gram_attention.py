"""GramAttention: attention between channels from one Gram matrix of the features.

Where queries q = Wq x and keys k = Wk x are 1x1 convolutions of one map x (C x N, N pixels), everything that pools them
over the pixels follows from G = x x^T: q k^T = Wq G Wk^T, and the squared norms are the diagonals of Wq G Wq^T and
Wk G Wk^T. The values are linear in x as well, so attention A, value weights Wv and an output projection Wp are one
matrix Wp A Wv on the pixels. What remains of six passes over the pixels (three projections, q k^T, A v, the output) is
two, and neither q, k nor v is written to memory.

Rounding: q and k that are small beside x (of a nearly flat picture, whose mean the projections remove) are differences
of large numbers in G. On such a picture the trained network differed by 1e-5 from float64, else by 4e-7 as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit, pointwise_weight
from clusir.export.graph.probe import LinearGraph

__all__ = ["GramAttention"]

Matrix = NDArray[np.float64]
_LEAST = 1e-8  # a factor of the projections beyond this, or its inverse, leaves float32's range when it is moved


@dataclass(frozen=True)
class _PixelMap:
    """A value that is ``scale * matrix @ source`` pixel by pixel.

    ``matrix`` [channels, C]; ``heads`` where the value is B x heads x channels/heads x N, 0 where it is still a map.
    """

    source: str
    matrix: Matrix
    scale: float = 1.0
    heads: int = 0

    def by_head(self) -> Matrix:
        return self.matrix.reshape(self.heads, -1, self.matrix.shape[1])


class GramAttention(GraphPass):
    """Products and norms of 1x1 projections, pooled over the pixels, from the Gram matrix of what they project."""

    name = "GramAttention"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        products = [n.output[0] for n in edit.model.graph.node if n.op_type == "MatMul"]
        logits = sum(_logits(edit, value) for value in products)
        if not logits:
            return PassResult(model, False, ("no attention between channels of 1x1 projections of one map was found",))
        edit.drop_unused()
        mixes = sum(
            _mix(edit, value) for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "MatMul"]
        )
        edit.drop_unused()
        note = (
            f"{logits} attentions from the Gram matrix of their features, {mixes} applied as one matrix to the pixels"
        )
        return PassResult(edit.model, True, (note,))


def _pixel_map(linear: LinearGraph, value: str) -> _PixelMap | None:
    """How a value follows from a map by a matrix on its channels; None where it does not."""
    node, shape = linear.producer.get(value), linear.shape(value)
    if node is None or shape is None or len(shape) != 4:
        return None
    if node.op_type == "Conv":
        weight = pointwise_weight(linear, node)
        if weight is None or len(node.input) > 2 or linear.shape(node.input[0]) is None:
            return None
        return _PixelMap(node.input[0], weight.astype(np.float64))
    data = [i for i in node.input if i and i not in linear.constants]
    if len(data) != 1 or node.op_type not in ("Reshape", "Mul", "Split"):
        return None
    inner, before = _pixel_map(linear, data[0]), linear.shape(data[0])
    if inner is None or before is None:
        return None
    if node.op_type == "Mul":
        factor = next(linear.constants[i] for i in node.input if i in linear.constants)
        return replace(inner, scale=inner.scale * float(factor.reshape(-1)[0])) if factor.size == 1 else None
    if inner.heads:
        return None
    if node.op_type == "Split":
        if next((a.i for a in node.attribute if a.name == "axis"), 0) != 1:
            return None
        outputs = list(node.output)
        first = sum((linear.shape(o) or (0, 0))[1] for o in outputs[: outputs.index(value)])
        return replace(inner, matrix=inner.matrix[first : first + shape[1]])
    batch, channels, height, width = before
    fits = shape[0] == batch and shape[1] * shape[2] == channels and shape[3] == height * width
    return replace(inner, heads=shape[1]) if fits else None


def _logits(edit: GraphEdit, value: str) -> bool:
    """Rewrite q k^T and the norms of q and k, if ``value`` is such a product and nothing else reads q and k."""
    linear = edit.linear()
    product = linear.producer.get(value)
    turned = None if product is None else linear.producer.get(product.input[1])
    if product is None or turned is None or turned.op_type != "Transpose":
        return False
    if [list(a.ints) for a in turned.attribute if a.name == "perm"] != [[0, 1, 3, 2]]:
        return False
    query, key = product.input[0], turned.input[0]
    q, k = _pixel_map(linear, query), _pixel_map(linear, key)
    if q is None or k is None or not q.heads or q.heads != k.heads or q.source != k.source:
        return False
    # The factor of one projection is divided by that of the other.
    if not (_LEAST < abs(q.scale) < 1 / _LEAST and _LEAST < abs(k.scale) < 1 / _LEAST):
        return False
    norms = [(name, map_, _squared_sums(linear, name)) for name, map_ in ((query, q), (key, k))]
    # Beside the squares, only the product (through the Transpose for k) reads q and k.
    if any(len(linear.users[name]) != 1 + len(squares) for name, _, (squares, _) in norms):
        return False
    shape = linear.shape(q.source)
    assert shape is not None
    channels = shape[1]
    flat = edit.reshape(q.source, [0, channels, shape[2] * shape[3]], f"{value}/pixels")
    weak = edit.node("Mul", [flat, edit.constant(q.scale * k.scale, f"{value}/scale")], f"{value}/scaled")
    back = edit.node("Transpose", [flat], f"{value}/pixels_back", perm=[0, 2, 1])
    gram = edit.reshape(
        edit.node("MatMul", [weak, back], f"{value}/gram"), [0, 1, channels, channels], f"{value}/gram_heads"
    )
    halves: dict[str, str] = {}
    for name, map_, (_, sums) in norms:
        if not sums and name == key:
            continue
        matrix = edit.constant(map_.by_head(), f"{name}/projection")
        halves[name] = edit.node("MatMul", [matrix, gram], f"{name}/half")
        # The Gram matrix carries the scales of both; the squares of one carry its own twice.
        own = edit.constant(
            map_.by_head() * (map_.scale / (q.scale * k.scale / map_.scale)), f"{name}/projection_again"
        )
        for total in sums:
            squared = edit.node("Mul", [halves[name], own], f"{total}/squares")
            axes = edit.constant([3], f"{total}/axes", np.int64)
            summed = edit.node("ReduceSum", [squared, axes], f"{total}/of_gram", keepdims=1)
            # A sum of squares that is nearly zero may come out below it this way, and a root is taken next.
            edit.redirect(total, edit.node("Relu", [summed], f"{total}/not_negative"))
    keys = edit.constant(k.by_head().transpose(0, 2, 1), f"{key}/projection_back")
    edit.redirect(value, edit.node("MatMul", [halves[query], keys], f"{value}/of_gram"))
    return True


def _squared_sums(linear: LinearGraph, value: str) -> tuple[list[onnx.NodeProto], list[str]]:
    """The squares of a value, and their sums over its last axis; only squares that nothing but such sums reads."""
    squares, sums = [], []
    for node in linear.users[value]:
        power = linear.constants.get(node.input[1]) if node.op_type == "Pow" else None
        squared = list(node.input) == [value, value] if node.op_type == "Mul" else power is not None and power.size == 1
        if not squared or (power is not None and float(power.reshape(-1)[0]) != 2.0):
            continue
        readers = linear.users.get(node.output[0], [])
        if readers and all(_over_last_axis(linear, r) for r in readers) and node.output[0] not in linear.outputs:
            squares.append(node)
            sums += [r.output[0] for r in readers]
    return squares, sums


def _over_last_axis(linear: LinearGraph, node: onnx.NodeProto) -> bool:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axes = linear.constants.get(node.input[1]) if node.op_type == "ReduceSum" and len(node.input) > 1 else None
    return axes is not None and axes.reshape(-1).tolist() in ([-1], [3]) and values.get("keepdims", 1) == 1


def _mix(edit: GraphEdit, value: str) -> bool:
    """Rewrite A v, and the output projection behind it, as one matrix on the pixels."""
    linear = edit.linear()
    product = linear.producer.get(value)
    if product is None or value in linear.outputs:
        return False
    attention, shape = linear.shape(product.input[0]), linear.shape(value)
    v = _pixel_map(linear, product.input[1])
    readers = linear.users.get(value, [])
    if v is None or not v.heads or attention is None or shape is None or len(readers) != 1:
        return False
    source, joined = linear.shape(v.source), readers[0].output[0]
    if source is None or readers[0].op_type != "Reshape" or linear.shape(joined) != (
        source[0], shape[1] * shape[2], *source[2:]
    ):  # fmt: skip
        return False
    batch, width, channels = source[0], shape[1] * shape[2], source[1]
    if attention[2] != attention[3] or attention[0] != batch:
        return False
    weights = edit.constant(v.by_head() * v.scale, f"{value}/values")
    mixed = edit.node("MatMul", [product.input[0], weights], f"{value}/mixed")
    mixed = edit.reshape(mixed, [0, width, channels], f"{value}/joined")
    end = joined
    after = linear.users.get(joined, [])
    if len(after) == 1 and joined not in linear.outputs:
        project = _pixel_map(linear, after[0].output[0])
        if project is not None and project.source == joined and not project.heads:
            mixed = edit.node("MatMul", [edit.constant(project.matrix, f"{value}/leave"), mixed], f"{value}/projected")
            width, end = len(project.matrix), after[0].output[0]
    flat = edit.reshape(v.source, [0, channels, source[2] * source[3]], f"{value}/pixels")
    out = edit.node("MatMul", [mixed, flat], f"{value}/applied")
    edit.redirect(end, edit.reshape(out, [0, width, *source[2:]], f"{value}/map"))
    return True
