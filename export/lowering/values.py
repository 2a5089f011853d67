"""Writes into tensors that nobody else looks at, as values: ``res += x`` as ``res + x``.

What is written into a tensor is a new value of it wherever no other tensor of the same memory is read afterwards.
That is seen in the graph, and spares the run of the whole program that any other write needs, which costs as much as a
trace.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Rewrite", "plain_writes", "second"]

# Operators that torch itself computes as others, of a new tensor whatever they are given.
_OF_NEW = frozenset(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d linear matmul layer_norm group_norm batch_norm
    instance_norm softmax log_softmax max_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d pixel_shuffle scaled_dot_product_attention where""".split()  # noqa: SIM905
)
# Operators whose name with a line behind it writes, and which have an ONNX form.
_AS_VALUES = frozenset(
    """add sub mul div relu leaky_relu silu sigmoid tanh elu hardtanh clamp clamp_min clamp_max masked_fill neg abs exp
    sqrt copy scatter scatter_add""".split()  # noqa: SIM905
)
_PLACED = frozenset(("masked_fill", "scatter"))  # what they write is a value as it is given, whatever its type
_PLACES = frozenset(("masked_fill", "scatter", "scatter_add"))  # their second tensor says where

Rewrite = Callable[..., Any]
"""What an operator that writes becomes: of the same arguments, the value that the tensor has afterwards."""


def plain_writes(graph: fx.Graph, written: list[fx.Node]) -> dict[fx.Node, Rewrite] | None:
    """What each of ``written``, the nodes that write, becomes; None where one of them is more than a value."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    groups = _groups(graph)
    found: dict[fx.Node, Rewrite] = {}
    for node in written:
        rewrite = _value_of(node)
        target = node.args[0] if node.args else None
        if rewrite is None or not isinstance(target, fx.Node):
            return None
        for other in groups[target]:
            if other.op != "call_function":
                return None  # a weight, or the picture
            is_old = other is not target and order[other] < order[node]
            if is_old and any(order[user] > order[node] for user in other.users):
                return None
        found[node] = rewrite
    return found


def _groups(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node that gives tensors, all that may share its memory."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "output" or not _tensors(node):
            continue
        mine = groups[node] = [node]
        for source in _shared(node):
            theirs = groups.get(source)
            if theirs is None or theirs is mine:
                continue
            theirs.extend(mine)
            for member in mine:
                groups[member] = theirs
            mine = theirs
    return groups


def _tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value))


def _shared(node: fx.Node) -> Iterator[fx.Node]:
    """The operands whose memory a node may give back."""
    target = node.target
    if node.op != "call_function" or target is operator.getitem or not isinstance(target, torch._ops.OpOverload):
        yield from node.all_input_nodes
        return
    schema = target._schema
    if any(made.alias_info is not None for made in schema.returns):
        for argument, given in zip(schema.arguments, node.args, strict=False):
            if argument.alias_info is not None:
                yield from (leaf for leaf in _leaves(given) if isinstance(leaf, fx.Node))
        yield from (leaf for given in node.kwargs.values() for leaf in _leaves(given) if isinstance(leaf, fx.Node))
    elif _is_composite(target) and schema.name.removeprefix("aten::") not in _OF_NEW:
        yield from node.all_input_nodes


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _is_composite(target: torch._ops.OpOverload) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key) or key in target.py_kernels


def _value_of(node: fx.Node) -> Rewrite | None:
    """The operator without a write that gives what ``node`` leaves in its first operand; None where there is none, or
    where it would give another type or shape."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    schema = target._schema
    name = schema.name.removeprefix("aten::").removesuffix("_")
    only_first = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments].count(True) == 1
    if name not in _AS_VALUES or not schema.name.endswith("_") or not only_first or not node.args:
        return None
    operands = [leaf.meta.get("val") for given in node.args for leaf in _leaves(given) if isinstance(leaf, fx.Node)]
    tensors = [value for value in operands if isinstance(value, Tensor)]
    into = tensors[0]
    if name == "copy":
        same = len(tensors) == 2 and tensors[1].dtype == into.dtype and _sizes(tensors[1]) == _sizes(into)
        return second if same else None
    rest = tensors[2:] if name in _PLACES else tensors[1:]
    if any(value.dtype != into.dtype for value in rest) or not (into.is_floating_point() or name in _PLACED):
        return None
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, schema.overload_name or "default", None)


def second(_: Any, value: Any, *rest: Any) -> Any:
    """What a copy leaves in its first operand."""
    return value


def _sizes(tensor: Tensor) -> list[str]:
    return [str(getattr(getattr(length, "node", None), "expr", length)) for length in tensor.shape]
