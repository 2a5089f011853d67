"""OrderGelu: GELU with its factors in the order in which runtimes know it.

At opset 18 GELU is five operators. torch's exporter writes x * (0.5 * (1 + erf(x / sqrt 2))); ONNX Runtime recognises
(x * (1 + erf(..))) * 0.5 and makes it one operator, of the blocked layout as well, but not the former order.
"""

from __future__ import annotations

import onnx

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.probe import LinearGraph

__all__ = ["OrderGelu"]


class OrderGelu(GraphPass):
    """x * (0.5 * (1 + erf(x / sqrt 2))) becomes (x * (1 + erf(x / sqrt 2))) * 0.5."""

    name = "OrderGelu"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        linear, products = edit.linear(), dict[str, str]()
        for value in [n.output[0] for n in edit.model.graph.node if n.op_type == "Erf"]:
            found = _half_inside(linear, value)
            if found is None:
                continue
            source, sum_, half, result = found
            product = edit.node("Mul", [source, sum_], f"{result}/product")
            products[result] = edit.node("Mul", [product, half], f"{result}/gelu")
        if not products:
            return PassResult(model, False, ("no GELU with its half inside the product was found",))
        edit.redirect_all(products)
        edit.drop_unused()
        return PassResult(edit.model, True, (f"{len(products)} GELU in the order that runtimes know",))


def _half_inside(linear: LinearGraph, erf: str) -> tuple[str, str, str, str] | None:
    """(x, 1 + erf, the constant 0.5, the result), if ``erf`` belongs to x * (0.5 * (1 + erf(x / sqrt 2)))."""
    scaled = linear.producer.get(linear.producer[erf].input[0])
    if scaled is None or scaled.op_type not in ("Div", "Mul"):
        return None
    source, factor = _with_constant(linear, scaled)
    root = 2**0.5 if scaled.op_type == "Div" else 0.5**0.5
    if source is None or not linear.is_float(source) or not abs(factor - root) <= 1e-6:
        return None
    sum_ = _only_user(linear, erf, "Add")
    halved = None if sum_ is None else _only_user(linear, sum_.output[0], "Mul")
    result = None if halved is None else _only_user(linear, halved.output[0], "Mul")
    if sum_ is None or halved is None or result is None or set(result.input) != {source, halved.output[0]}:
        return None
    if _with_constant(linear, sum_) != (erf, 1.0) or _with_constant(linear, halved) != (sum_.output[0], 0.5):
        return None
    half = next(i for i in halved.input if i in linear.constants)
    return source, sum_.output[0], half, result.output[0]


def _with_constant(linear: LinearGraph, node: onnx.NodeProto) -> tuple[str | None, float]:
    """The data operand and the scalar constant of a binary operator; (None, 0) where it has none such."""
    data = [i for i in node.input if i not in linear.constants]
    scalars = [linear.constants[i] for i in node.input if i in linear.constants]
    if (
        len(data) != 1
        or len(scalars) != 1
        or scalars[0].size != 1
        or (node.op_type == "Div" and node.input[0] != data[0])
    ):
        return None, 0.0
    return data[0], float(scalars[0].reshape(-1)[0])


def _only_user(linear: LinearGraph, value: str, kind: str) -> onnx.NodeProto | None:
    users = linear.users.get(value, [])
    return users[0] if len(users) == 1 and users[0].op_type == kind and value not in linear.outputs else None
