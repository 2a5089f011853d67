"""PlainOperators: for runtimes of phones, operators that few of them have become those that all of them have.

Einsum becomes products of matrices, Resize two products with constant matrices, what is scattered to constant places a
gathering; Mish, Gelu, Elu and the hard activations become their formulas, sums of squares those of numbers. The
function stays the same, to rounding. Every shape must be known.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import sort_nodes
from clusir.export.passes.plain.base import Shapes, Write
from clusir.export.passes.plain.einsum import einsum
from clusir.export.passes.plain.formulas import FORMULAS
from clusir.export.passes.plain.resize import resize, uneven
from clusir.export.passes.plain.scatter import gather, gather_nd, scatter
from clusir.export.passes.rank_four import known_shapes

__all__ = ["PlainOperators"]

_FORMS: dict[str, Write] = {
    "Einsum": einsum,
    "Resize": resize,
    "ScatterND": scatter,
    "Gather": gather,
    "GatherND": gather_nd,
    **FORMULAS,
}


class PlainOperators(GraphPass):
    """``keeps``: whether a node stays as it is, because the runtime has that form of it."""

    name = "PlainOperators"

    def __init__(self, keeps: Callable[[onnx.NodeProto, Shapes], bool] = lambda _node, _shapes: False) -> None:
        self.keeps = keeps

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        shapes = known_shapes(model)
        edit = GraphEdit(model)
        done, left = [], []
        for node in [node for node in edit.model.graph.node if _rare(node, shapes)]:
            known = {name for name in (*node.input, *node.output) if name} <= set(shapes)
            odd = known and node.op_type == "Resize" and len(shapes[node.input[0]]) == 4 and uneven(edit, node, shapes)
            if known and not odd and self.keeps(node, shapes):
                continue
            answer = _FORMS[node.op_type](edit, node, shapes) if known else ""
            if not answer:
                left.append(f"{node.op_type} {node.output[0]}: it has no plain form here")
                continue
            done.append(f"{node.op_type} {node.output[0]}")
            edit.model.graph.node.remove(node)
            edit.model.graph.node.append(helper.make_node("Identity", [answer], [node.output[0]], name=node.output[0]))
        if not done:
            return PassResult(model, False, tuple(left))
        ordered = sort_nodes(edit.model.graph.node)
        del edit.model.graph.node[:]
        edit.model.graph.node.extend(ordered)
        edit.drop_unused()
        inferred = onnx.shape_inference.infer_shapes(edit.model)
        onnx.checker.check_model(inferred)
        return PassResult(inferred, True, (*done, *left))


def _rare(node: onnx.NodeProto, shapes: Shapes) -> bool:
    if node.op_type == "Gather":
        return len(shapes.get(node.input[1], ())) > 1
    return node.op_type in _FORMS and (node.op_type not in ("Max", "Min") or len(node.input) > 2)
