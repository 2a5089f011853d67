"""Einsum as products of matrices, two operands at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.passes.plain.base import Shapes

__all__ = ["einsum"]


def _terms(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str] | None:
    """The letters of the operands and of the answer, an ellipsis as capital letters of its own; None where one letter
    stands twice in an operand, or axes of one element are repeated."""
    text = equation.replace(" ", "")
    given, _, answer = text.partition("->")
    terms = given.split(",")
    ranks = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)]
    spare = [letter for letter in map(chr, range(65, 91)) if letter not in text]
    wide = max((rank for term, rank in zip(terms, ranks, strict=True) if "..." in term), default=0)
    dots = "".join(spare[:wide])
    if "->" not in text:
        letters = sorted(set(given) - set(".,"))
        answer = "..." * bool(wide) + "".join(letter for letter in letters if given.count(letter) == 1)
    terms = [term.replace("...", dots[wide - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(set(term)) != len(term) or len(term) != len(shape):
            return None
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    return terms, answer.replace("...", dots)


def einsum(edit: GraphEdit, node: onnx.NodeProto, shapes: Shapes) -> str:
    equation = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "equation").decode()
    read = _terms(equation, [shapes[name] for name in node.input])
    if read is None:
        return ""
    terms, answer = read
    sizes = {
        letter: size
        for term, name in zip(terms, node.input, strict=True)
        for letter, size in zip(term, shapes[name], strict=True)
    }
    hint = node.output[0]

    def turned(value: str, term: str, wanted: str) -> str:
        order = [term.index(letter) for letter in wanted]
        return value if term == wanted else edit.node("Transpose", [value], f"{hint}/turned", perm=order)

    def shaped(value: str, *groups: str) -> str:
        """One axis for each group of letters, and one of one element in front."""
        return edit.reshape(
            value, [1, *(math.prod(sizes[letter] for letter in group) for group in groups)], f"{hint}/as"
        )

    def summed(value: str, term: str, needed: set[str]) -> tuple[str, str]:
        over = [place for place, letter in enumerate(term) if letter not in needed]
        if not over:
            return value, term
        axes = edit.constant(over, f"{hint}/over", np.int64)
        kept = "".join(letter for letter in term if letter in needed)
        return edit.node("ReduceSum", [value, axes], f"{hint}/summed", keepdims=0), kept

    value, term = summed(node.input[0], terms[0], set(answer).union(*terms[1:]))
    for place in range(1, len(terms)):
        later = set(answer).union(*terms[place + 1 :])
        other, mine = summed(node.input[place], terms[place], later | set(term))
        value, term = summed(value, term, later | set(mine))
        both = "".join(letter for letter in term if letter in mine and letter in later)
        inner = "".join(letter for letter in term if letter in mine and letter not in later)
        left = "".join(letter for letter in term if letter not in mine)
        right = "".join(letter for letter in mine if letter not in term)
        a = turned(value, term, both + left + inner)
        b = turned(other, mine, both + inner + right)
        if inner:
            value = edit.node(
                "MatMul", [shaped(a, both, left, inner), shaped(b, both, inner, right)], f"{hint}/product"
            )
        else:
            value = edit.node("Mul", [shaped(a, both, left, ""), shaped(b, both, "", right)], f"{hint}/product")
        term = both + left + right
        value = edit.reshape(value, [sizes[letter] for letter in term], f"{hint}/whole")
    return turned(value, term, answer)
