"""InstanceNormalization in plain operators, from a map without its mean and from its variance."""

from __future__ import annotations

import onnx

from clusir.export.graph.edit import GraphEdit

__all__ = ["write_norm"]


def write_norm(edit: GraphEdit, node: onnx.NodeProto, middle: str, variance: str, rank: int) -> None:
    """Let the users of ``node``, an InstanceNormalization of ``rank`` axes, read ``middle / sqrt(variance + epsilon)``
    times its scale plus its bias. ``middle``: the map without its mean, [B, C, ...]; ``variance``: [B, C, 1, ...]."""
    _, scale, bias = node.input
    name = node.output[0]
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    shifted = edit.node("Add", [variance, edit.constant(epsilon, f"{name}/epsilon")], f"{name}/shifted")
    unit = edit.node("Div", [middle, edit.node("Sqrt", [shifted], f"{name}/deviation")], f"{name}/unit")
    shape = [1, -1, *[1] * (rank - 2)]
    scaled = edit.node("Mul", [unit, edit.reshape(scale, shape, f"{name}/scale")], f"{name}/scaled")
    edit.redirect(name, edit.node("Add", [scaled, edit.reshape(bias, shape, f"{name}/bias")], f"{name}/made"))
