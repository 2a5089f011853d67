"""LeadingAxes: axes in front that a Transpose leaves alone are one axis while it works.

Attention in shifted windows reshapes [3B, C, H, W] to [3, B, C, HW], swaps the last two axes, and reshapes to
[3, B, H, W, C]. OpenVINO (2026.4.1) takes such a Reshape, Transpose, Reshape for a channel shuffle, asks for the length
of the open batch that is not in front, and refuses the graph. With 3B left in front as one axis it compiles.
"""

from __future__ import annotations

import onnx

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex

__all__ = ["LeadingAxes"]


class LeadingAxes(GraphPass):
    """Reshape to [a, open, ..] -> Transpose of what is behind -> Reshape keeps [a * open] in front as one axis."""

    name = "LeadingAxes"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        index, changed = GraphIndex(edit.model.graph), dict[str, str]()
        for node in [n for n in edit.model.graph.node if n.op_type == "Transpose"]:
            found = _site(index, node)
            if found is None:
                continue
            source, behind, order, shapes = found
            rows = edit.reshape(source, [-1, *behind], f"{node.output[0]}/rows")
            turned = edit.node("Transpose", [rows], f"{node.output[0]}/turned", perm=[0, *order])
            for name, shape in shapes.items():
                changed[name] = edit.reshape(turned, shape, f"{name}/whole")
        if not changed:
            return PassResult(
                model, False, ("no open axis behind another is left alone by a Transpose between Reshapes",)
            )
        edit.redirect_all(changed)
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(changed)} Reshapes read a Transpose with one axis in front",))


def _site(index: GraphIndex, node: onnx.NodeProto) -> tuple[str, list[int], list[int], dict[str, list[int]]] | None:
    """(what is reshaped, the lengths behind the leading axes, their new order, the shape of each Reshape behind)."""
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
    kept = next((i for i, axis in enumerate(order) if axis != i), 0)
    before = index.producer.get(node.input[0])
    if kept < 2 or before is None or before.op_type != "Reshape" or not _read_by(index, before, [node]):
        return None
    shape = _shape(index, before)
    if shape is None or len(shape) != len(order) or min(shape[kept:]) <= 0 or min(shape[1:kept]) > 0:
        return None
    readers = index.users.get(node.output[0], [])
    if not readers or not _read_by(index, node, readers):
        return None
    turned = [*shape[:kept], *(shape[axis] for axis in order[kept:])]
    shapes = {}
    for reader in readers:
        asked = _shape(index, reader) if reader.op_type == "Reshape" else None
        if asked is None or reader.input[0] != node.output[0]:
            return None
        copied = [size or (max(turned[i], -1) if i < len(turned) else 0) for i, size in enumerate(asked)]
        copied = [size or -1 for size in copied]  # as long as an axis whose length nobody has written down
        if copied.count(-1) > 1:
            return None
        shapes[reader.output[0]] = copied
    return before.input[0], shape[kept:], [axis - kept + 1 for axis in order[kept:]], shapes


def _read_by(index: GraphIndex, node: onnx.NodeProto, readers: list[onnx.NodeProto]) -> bool:
    """Whether nobody but ``readers`` sees what ``node`` makes."""
    name = node.output[0]
    return name not in index.outputs and index.users.get(name, []) == readers


def _shape(index: GraphIndex, reshape: onnx.NodeProto) -> list[int] | None:
    """The constant shape that a Reshape is given; None where it is none, or where its zeros are lengths."""
    return None if index.attribute(reshape, "allowzero", 0) else index.integers(reshape.input[1])
