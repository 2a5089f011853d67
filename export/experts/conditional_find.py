"""Where a dense graph weighs experts: products of a gate's column with the end of a cone of nodes, and their sums."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from clusir.export.graph.index import GraphIndex, drop_unused

__all__ = ["Product", "products", "routing_matrices", "unroll_sums"]

_WORK = ("Conv", "MatMul", "Gemm", "ConvTranspose")
_RESHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Identity", "Expand")


@dataclass(frozen=True)
class Product:
    """gate column * expert: the Mul, its input that is the expert, its input that is the weight, matrix and column."""

    node: onnx.NodeProto
    value: str
    weight: str
    gate: str
    column: int


def _column(index: GraphIndex, name: str) -> tuple[str, int] | None:
    """(matrix, column) where ``name`` is one column of a matrix [B, E, ...], possibly reshaped; None otherwise."""
    node = index.producer.get(name)
    while node is not None and node.op_type in _RESHAPING:
        node = index.producer.get(name := node.input[0])
    shape = index.shape(node.input[0]) if node is not None and node.input else None
    if node is None or shape is None or len(shape) < 2:
        return None
    source, rank, width = node.input[0], len(shape), shape[1]
    if not isinstance(width, int) or width < 2:
        return None
    if node.op_type == "Gather" and index.attribute(node, "axis", 0) % rank == 1:
        at = index.integers(node.input[1])
        return (source, at[0] % width) if at is not None and len(at) == 1 else None
    if node.op_type == "Slice" and len(node.input) in (4, 5):
        values = [v for v in (index.integers(i) for i in node.input[1:]) if v is not None and len(v) == 1]
        if len(values) != len(node.input) - 1 or values[2][0] % rank != 1:
            return None
        start, stop, _ = slice(values[0][0], values[1][0]).indices(width)
        return (source, start) if stop - start == 1 else None
    if node.op_type == "Split" and index.attribute(node, "axis", 0) % rank == 1 and len(node.output) == width:
        return source, list(node.output).index(name)
    return None


def products(index: GraphIndex) -> list[Product]:
    """Every product of a column of a matrix with the end of a cone that convolves or multiplies matrices."""
    found = []
    for node in index.graph.node:
        if node.op_type != "Mul":
            continue
        for value, weight in (tuple(node.input), tuple(reversed(node.input))):
            column = _column(index, weight)
            if column is not None and any(n.op_type in _WORK for n in index.cone(value, node)):
                found.append(Product(node, value, weight, *column))
                break
    return found


def routing_matrices(products: list[Product]) -> set[str]:
    """The matrices of which at least two columns weigh an expert: one alone is no choice."""
    columns: dict[str, set[int]] = {}
    for product in products:
        columns.setdefault(product.gate, set()).add(product.column)
    return {gate for gate, used in columns.items() if len(used) >= 2}


def unroll_sums(graph: onnx.GraphProto) -> None:
    """``Sum(a, b, c)`` and ``ReduceSum(stack(a, b, c))`` over the stacked axis become chains of Add."""
    index = GraphIndex(graph)
    nodes = []
    for node in graph.node:
        terms = list(node.input) if node.op_type == "Sum" else _stacked(index, node)
        if len(terms) < 2:
            nodes.append(node)
            continue
        total, result = terms[0], node.output[0]
        for number, term in enumerate(terms[1:], start=1):
            out = result if number == len(terms) - 1 else f"{result}__sum_{number}"
            nodes.append(helper.make_node("Add", [total, term], [out], name=f"{out}__add"))
            if out != result:
                graph.value_info.append(index.typed(out, result))
            total = out
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def _stacked(index: GraphIndex, node: onnx.NodeProto) -> list[str]:
    """The terms of ``ReduceSum(Concat(Unsqueeze(a, 0), Unsqueeze(b, 0), ...), axes=[0])``; empty for anything else."""
    if node.op_type != "ReduceSum" or len(node.input) < 2 or index.attribute(node, "keepdims", 1) != 0:
        return []
    stack = index.producer.get(node.input[0])
    if stack is None or stack.op_type != "Concat" or len(index.users[stack.output[0]]) != 1:
        return []
    rank = len(index.shape(stack.output[0]) or [0])
    if index.attribute(stack, "axis", 0) % rank or [a % rank for a in index.integers(node.input[1]) or [1]] != [0]:
        return []
    lifts = [index.producer.get(name) for name in stack.input]
    if any(n is None or n.op_type != "Unsqueeze" or index.integers(n.input[1]) != [0] for n in lifts):
        return []
    return [n.input[0] for n in lifts if n is not None]
