"""What a form of PlainOperators is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from clusir.export.graph.edit import GraphEdit

__all__ = ["Shapes", "Write"]

Shapes = Mapping[str, tuple[int, ...]]
# Given the graph under change, a node of it and every shape: the name of what the node answers, or "", and it stays.
Write = Callable[[GraphEdit, onnx.NodeProto, Shapes], str]
