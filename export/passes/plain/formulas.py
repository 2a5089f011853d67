"""Operators that few runtimes have, written as their formulas."""

from __future__ import annotations

import math

import onnx
from onnx import helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.passes.plain.base import Shapes, Write

__all__ = ["FORMULAS"]


def _softplus(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    x, hint = node.input[0], node.output[0]
    small = edit.node("Exp", [edit.node("Neg", [edit.node("Abs", [x], f"{hint}/size")], f"{hint}/less")], f"{hint}/exp")
    log = edit.node("Log", [edit.node("Add", [small, edit.constant(1, f"{hint}/one")], f"{hint}/more")], f"{hint}/log")
    return edit.node("Add", [edit.node("Relu", [x], f"{hint}/above"), log], f"{hint}/soft")


def _mish(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    share = edit.node("Tanh", [_softplus(edit, node, shapes)], f"{node.output[0]}/share")
    return edit.node("Mul", [node.input[0], share], f"{node.output[0]}/mish")


def _number(node: onnx.NodeProto, name: str, default: float) -> float:
    return float(next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default))


def _hard(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """HardSigmoid, and HardSwish, which is it times its input."""
    swish, hint = node.op_type == "HardSwish", node.output[0]
    alpha, beta = (1 / 6, 0.5) if swish else (_number(node, "alpha", 0.2), _number(node, "beta", 0.5))
    line = edit.node("Mul", [node.input[0], edit.constant(alpha, f"{hint}/alpha")], f"{hint}/steep")
    line = edit.node("Add", [line, edit.constant(beta, f"{hint}/beta")], f"{hint}/line")
    cut = edit.node("Clip", [line, edit.constant(0, f"{hint}/low"), edit.constant(1, f"{hint}/high")], f"{hint}/cut")
    return edit.node("Mul", [node.input[0], cut], f"{hint}/swish") if swish else cut


def _elu(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """relu(x) + alpha (exp(min(x, 0)) - 1); Selu is gamma times that, Celu its own slope."""
    kind, hint = node.op_type, node.output[0]
    alpha = _number(node, "alpha", 1.6732632 if kind == "Selu" else 1.0)
    gamma = _number(node, "gamma", 1.0507010) if kind == "Selu" else 1.0
    below = edit.node("Min", [node.input[0], edit.constant(0, f"{hint}/zero")], f"{hint}/below")
    if kind == "Celu":
        below = edit.node("Mul", [below, edit.constant(1 / alpha, f"{hint}/slope")], f"{hint}/sloped")
    rise = edit.node("Sub", [edit.node("Exp", [below], f"{hint}/exp"), edit.constant(1, f"{hint}/one")], f"{hint}/rise")
    rise = edit.node("Mul", [rise, edit.constant(alpha, f"{hint}/alpha")], f"{hint}/scaled")
    out = edit.node("Add", [edit.node("Relu", [node.input[0]], f"{hint}/above"), rise], f"{hint}/elu")
    return out if gamma == 1 else edit.node("Mul", [out, edit.constant(gamma, f"{hint}/gamma")], f"{hint}/selu")


def _gelu(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    x, hint = node.input[0], node.output[0]

    def times(value: str, number: float, what: str) -> str:
        return edit.node("Mul", [value, edit.constant(number, f"{hint}/{what}")], f"{hint}/{what}_times")

    if next((helper.get_attribute_value(a) for a in node.attribute if a.name == "approximate"), b"none") == b"tanh":
        cube = edit.node("Mul", [edit.node("Mul", [x, x], f"{hint}/square"), x], f"{hint}/cube")
        inner = edit.node("Add", [x, times(cube, 0.044715, "small")], f"{hint}/inner")
        share = edit.node("Tanh", [times(inner, math.sqrt(2 / math.pi), "root")], f"{hint}/share")
    else:
        share = edit.node("Erf", [times(x, math.sqrt(0.5), "root")], f"{hint}/share")
    more = edit.node("Add", [share, edit.constant(1, f"{hint}/one")], f"{hint}/more")
    return times(edit.node("Mul", [x, more], f"{hint}/double"), 0.5, "half")


def _sums(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """Sums of squares, of magnitudes and of powers of e, and products of few numbers."""
    hint, (x, *axes) = node.output[0], node.input
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "ReduceSumSquare":
        return edit.node("ReduceSum", [edit.node("Mul", [x, x], f"{hint}/square"), *axes], f"{hint}/sum", **kept)
    if node.op_type == "ReduceL2":
        total = edit.node("ReduceSum", [edit.node("Mul", [x, x], f"{hint}/square"), *axes], f"{hint}/sum", **kept)
        return edit.node("Sqrt", [total], f"{hint}/root")
    if node.op_type == "ReduceL1":
        return edit.node("ReduceSum", [edit.node("Abs", [x], f"{hint}/size"), *axes], f"{hint}/sum", **kept)
    whole = edit.node("ReduceMax", [x, *axes], f"{hint}/most", **{**kept, "keepdims": 1})
    apart = edit.node("Exp", [edit.node("Sub", [x, whole], f"{hint}/apart")], f"{hint}/exp")
    total = edit.node("Log", [edit.node("ReduceSum", [apart, *axes], f"{hint}/sum", **kept)], f"{hint}/log")
    most = whole if kept.get("keepdims", 1) else edit.node("ReduceMax", [x, *axes], f"{hint}/most_again", **kept)
    return edit.node("Add", [total, most], f"{hint}/total")


def _sign(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """1 where above 0, less 1 where below."""
    zero, hint = edit.constant(0, f"{node.output[0]}/zero"), node.output[0]
    above, below = (
        edit.node("Cast", [edit.node(kind, [node.input[0], zero], f"{hint}/{kind}")], f"{hint}/{kind}_one", to=1)
        for kind in ("Greater", "Less")
    )
    return edit.node("Sub", [above, below], f"{hint}/sign")


def _several(edit: GraphEdit, node: onnx.NodeProto, _: Shapes) -> str:
    """Max, Min and Sum of several values, two at a time; Mean divided by their number."""
    kind, hint = {"Sum": "Add", "Mean": "Add"}.get(node.op_type, node.op_type), node.output[0]
    value = node.input[0]
    for other in node.input[1:]:
        value = edit.node(kind, [value, other], f"{hint}/next")
    if node.op_type == "Mean":
        value = edit.node("Mul", [value, edit.constant(1 / len(node.input), f"{hint}/share")], f"{hint}/mean")
    return value


FORMULAS: dict[str, Write] = {
    "Mish": _mish, "Softplus": _softplus, "HardSigmoid": _hard, "HardSwish": _hard, "Elu": _elu, "Selu": _elu,
    "Celu": _elu, "Gelu": _gelu, "Sign": _sign, "ReduceSumSquare": _sums, "ReduceL1": _sums, "ReduceL2": _sums,
    "ReduceLogSumExp": _sums,
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _several),
}  # fmt: skip
