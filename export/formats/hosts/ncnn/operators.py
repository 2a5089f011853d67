"""Each ONNX operator as layers of ncnn's. The shapes are known, and every number is a float32 in ncnn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.ncnn.layers import Blob, Layers, kept

__all__ = ["FOUR", "OPERATORS", "Node", "coalesced", "unary_of"]

FOUR = 4  # axes that a blob may have


class Node:
    """One operator of the graph, what it reads and answers, and the layers to write to."""

    def __init__(self, node: onnx.NodeProto, to: Layers) -> None:
        self.kind, self.to = node.op_type, to
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(self.to.shapes[self.outputs[0]])

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.to.shapes[self.inputs[index]])

    def get(self, name: str, default: Any) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> NDArray[Any] | None:
        """The value of a constant input; None where it is not given. Raises Refused where it is computed."""
        if not self.has(index):
            return None
        if self.inputs[index] not in self.to.constants:
            self.refuse(f"input {index} is computed")
        return np.asarray(self.to.constants[self.inputs[index]])

    def known(self, index: int) -> NDArray[Any]:
        value = self.constant(index)
        if value is None:
            self.refuse(f"input {index} is missing")
        return np.asarray(value)

    def scalar(self, index: int) -> float | None:
        """The one number of a constant input of one element; None for any other input."""
        value = self.to.constants.get(self.inputs[index]) if self.has(index) else None
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def given(self, index: int = 0) -> Blob:
        """An input with its own axes; with fewer, where they are more than four: what is done element by element does
        not see it."""
        dims = kept(self.shape(index))
        return self.to.view(self.inputs[index], dims) if len(dims) <= FOUR else self.to.held(self.inputs[index])

    def answer(self, blob: Blob) -> None:
        self.to.bind(self.outputs[0], blob)

    def refuse(self, why: str) -> NoReturn:
        raise Refused(f"{self.kind} {self.outputs[0]}: {why}")


def together(node: Node, indices: Sequence[int]) -> list[Blob]:
    """Operands with as many axes as each other, ones in front, for what is done element by element."""
    rank = max(1, max(len(node.shape(index)) for index in indices))
    shapes = [(1,) * (rank - len(node.shape(index))) + node.shape(index) for index in indices]
    if rank > 1 and all(shape[0] == 1 for shape in shapes):
        shapes = [shape[1:] for shape in shapes]
    shapes = coalesced(shapes, FOUR)
    return [node.to.view(node.inputs[index], shape) for index, shape in zip(indices, shapes, strict=True)]


def coalesced(shapes: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """The shapes with two neighbouring axes as one, until ``most`` are left, where each has both whole or both as
    ones: broadcasting does not see it."""
    while len(shapes[0]) > most:
        out = np.broadcast_shapes(*shapes)
        for k in range(len(out) - 1):
            if all(shape[k : k + 2] in (out[k : k + 2], (1, 1)) for shape in shapes):
                break
        else:
            raise Refused(f"ncnn has four axes at most; {' and '.join(map(str, shapes))} have more")
        shapes = [(*shape[:k], shape[k] * shape[k + 1], *shape[k + 2 :]) for shape in shapes]
    return list(shapes)


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(tuple(a), tuple(b)))


def pair(to: Layers, number: int, a: Blob, b: Blob) -> Blob:
    return to.one("BinaryOp", [a, b], {0: number}, broadcast(a.dims, b.dims))


def with_number(to: Layers, number: int, a: Blob, b: float) -> Blob:
    return to.one("BinaryOp", a, {0: number, 1: 1, 2: float(b)}, a.dims)


ADD, SUB, MUL, DIV, MAX, MIN, POW, RSUB, RDIV, RPOW = range(10)
_TURNED = {ADD: ADD, MUL: MUL, MAX: MAX, MIN: MIN, SUB: RSUB, DIV: RDIV, POW: RPOW}


def binary(number: int) -> Callable[[Node], None]:
    def write(node: Node) -> None:
        if len(node.inputs) == 1:
            return node.answer(node.given())
        whole = math.prod(node.out)
        if len(node.inputs) == 2:
            for one, other in ((1, 0), (0, 1)):
                value = node.scalar(one)
                if value is not None and math.isfinite(value) and math.prod(node.shape(other)) == whole:
                    if number == POW and one and value in (2.0, 0.5):
                        return node.answer(unary_of(node.to, 4 if value == 2 else 5, node.given(other)))
                    return node.answer(
                        with_number(node.to, number if one else _TURNED[number], node.given(other), value)
                    )
        blobs = together(node, range(len(node.inputs)))
        answer = blobs[0]
        for blob in blobs[1:]:
            answer = pair(node.to, number, answer, blob)
        return node.answer(answer)

    return write


def unary_of(to: Layers, number: int, blob: Blob) -> Blob:
    return to.one("UnaryOp", blob, {0: number}, blob.dims)


def unary(number: int) -> Callable[[Node], None]:
    return lambda node: node.answer(unary_of(node.to, number, node.given()))


def same(kind: str, **names: tuple[int, float]) -> Callable[[Node], None]:
    """A layer that keeps the axes; ``names``: the parameter of an attribute, and its value where it is not given."""

    def write(node: Node) -> None:
        parameters = {number: float(node.get(name, value)) for name, (number, value) in names.items()}
        node.answer(node.to.one(kind, node.given(), parameters, node.given().dims))

    return write


def above(to: Layers, a: Blob, b: Blob) -> Blob:
    """1 where a > b, else 0: ncnn has no comparison, but a threshold."""
    difference = pair(to, SUB, a, b)
    return to.one("Threshold", difference, {0: 0.0}, difference.dims)


def inverse(to: Layers, blob: Blob) -> Blob:
    return with_number(to, RSUB, blob, 1.0)


def compare(node: Node) -> None:
    a, b = together(node, (0, 1))
    to = node.to
    if node.kind == "Equal":
        apart = unary_of(to, 0, pair(to, SUB, a, b))
        return node.answer(inverse(to, to.one("Threshold", apart, {0: 0.0}, apart.dims)))
    first, second = (a, b) if node.kind in ("Greater", "LessOrEqual") else (b, a)
    found = above(to, first, second)
    return node.answer(inverse(to, found) if node.kind.endswith("OrEqual") else found)


def choose(node: Node) -> None:
    """Where: one of the two times 1, the other times 0."""
    where, first, second = together(node, (0, 1, 2))
    left = pair(node.to, MUL, where, first)
    node.answer(pair(node.to, ADD, left, pair(node.to, MUL, inverse(node.to, where), second)))


def cast(node: Node) -> None:
    to = int(node.get("to", 1))
    blob = node.given()
    if to in (6, 7):
        blob = unary_of(node.to, 19, blob)
    elif to == onnx.TensorProto.BOOL:
        size = unary_of(node.to, 0, blob)
        blob = node.to.one("Threshold", size, {0: 0.0}, size.dims)
    elif to not in (1, 11):
        node.refuse(f"it makes {onnx.TensorProto.DataType.Name(to)}")
    node.answer(blob)


def clip(node: Node) -> None:
    limits = {index - 1: node.scalar(index) for index in (1, 2) if node.has(index)}
    if None in limits.values():
        node.refuse("its limits are no single constants")
    low, high = limits.get(0), limits.get(1)
    node.answer(
        node.to.one("Clip", node.given(), {0: -3.0e38 if low is None else low, 1: 3.0e38 if high is None else high},
                    node.given().dims)
    )  # fmt: skip


def prelu(node: Node) -> None:
    """relu(x) - slope relu(-x)."""
    x, slope = together(node, (0, 1))
    positive = node.to.one("ReLU", x, {}, x.dims)
    negative = unary_of(node.to, 1, x)
    negative = node.to.one("ReLU", negative, {}, x.dims)
    node.answer(pair(node.to, SUB, positive, pair(node.to, MUL, slope, negative)))


def softplus_of(to: Layers, x: Blob) -> Blob:
    """max(x, 0) + log(1 + exp(-|x|)), which cannot overflow as ncnn's own does."""
    small = unary_of(to, 7, unary_of(to, 1, unary_of(to, 0, x)))
    return pair(to, ADD, to.one("ReLU", x, {}, x.dims), unary_of(to, 8, with_number(to, ADD, small, 1.0)))


def softplus(node: Node) -> None:
    node.answer(softplus_of(node.to, node.given()))


def mish(node: Node) -> None:
    x = node.given()
    rise = node.to.one("TanH", softplus_of(node.to, x), {}, x.dims)
    node.answer(pair(node.to, MUL, x, rise))


def gelu(node: Node) -> None:
    node.answer(
        node.to.one("GELU", node.given(), {0: int(node.get("approximate", "none") == "tanh")}, node.given().dims)
    )


def softmax(node: Node) -> None:
    shape = node.shape(0)
    axis = int(node.get("axis", -1)) % len(shape)
    ahead, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    dims = (ahead, shape[axis]) if behind == 1 else (ahead, shape[axis], behind)
    node.answer(node.to.one("Softmax", node.to.view(node.inputs[0], dims), {0: 1, 1: 1}, dims))


OPERATORS: dict[str, Callable[[Node], None]] = {
    "Add": binary(ADD), "Sub": binary(SUB), "Mul": binary(MUL), "Div": binary(DIV), "Max": binary(MAX),
    "Min": binary(MIN), "Pow": binary(POW), "And": binary(MUL), "Or": binary(MAX),
    "Abs": unary(0), "Neg": unary(1), "Floor": unary(2), "Ceil": unary(3), "Sqrt": unary(5), "Exp": unary(7),
    "Log": unary(8), "Sin": unary(9), "Cos": unary(10), "Reciprocal": unary(15), "Tanh": same("TanH"),
    "Sigmoid": same("Sigmoid"), "Relu": same("ReLU"), "LeakyRelu": same("ReLU", alpha=(0, 0.01)),
    "Elu": same("ELU", alpha=(0, 1.0)), "Erf": same("Erf"), "Gelu": gelu, "Mish": mish, "Softplus": softplus,
    "HardSigmoid": same("HardSigmoid", alpha=(0, 0.2), beta=(1, 0.5)),
    "HardSwish": same("HardSwish", alpha=(0, 1 / 6), beta=(1, 0.5)), "PRelu": prelu, "Clip": clip,
    "Greater": compare, "GreaterOrEqual": compare, "Less": compare, "LessOrEqual": compare, "Equal": compare,
    "Not": lambda node: node.answer(inverse(node.to, node.given())), "Where": choose, "Cast": cast,
    "Softmax": softmax,
}  # fmt: skip
for _kind in ("Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze", "Flatten"):
    OPERATORS[_kind] = lambda node: node.to.alias(node.outputs[0], node.inputs[0])
