"""Writes into tensors that nobody else looks at, as values: ``res += x`` as ``res + x``.

What is written into a tensor is a new value of it wherever no other tensor of the same memory is read afterwards, but
those that it is a part of (``res[:, 0] += x``): they get the new part in its place. That is seen in the graph, and
spares the run of the whole program that any other write needs, which costs as much as a trace.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["PLACED_IN", "Write", "first", "is_composite", "plain_writes", "second"]

# Operators that torch itself computes as others, of a new tensor whatever they are given.
_OF_NEW = frozenset(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d linear matmul layer_norm group_norm batch_norm
    instance_norm softmax log_softmax max_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d pixel_shuffle scaled_dot_product_attention where""".split()  # noqa: SIM905
)
# Operators whose name with a line behind it writes, and which have an ONNX form.
_AS_VALUES = frozenset(
    """add sub mul div relu leaky_relu silu sigmoid tanh elu hardtanh clamp clamp_min clamp_max masked_fill neg abs exp
    sqrt copy fill scatter scatter_add index_put""".split()  # noqa: SIM905
)
_PLACED = frozenset(
    ("masked_fill", "scatter", "fill", "index_put")
)  # what they write is a value as it is given, whatever its type
_OF_INTEGERS = frozenset(("add", "sub", "mul"))  # they give integers of integers
_PLACES = frozenset(("masked_fill", "scatter", "scatter_add"))  # their second tensor says where

# Operators that give a part of a tensor, and those that put another in its place: of the whole, the new part, and what
# says which part it is.
PLACED_IN: dict[Any, Any] = {
    torch.ops.aten.slice.Tensor: torch.ops.aten.slice_scatter.default,
    torch.ops.aten.select.int: torch.ops.aten.select_scatter.default,
}
# Operators whose result may share memory with their operand, and each of its numbers with one of them alone.
_MOVES = frozenset(
    """slice select permute transpose t view reshape flatten unflatten unsqueeze squeeze alias detach contiguous to
    chunk split unbind""".split()  # noqa: SIM905
)

Rewrite = Callable[..., Any]


@dataclass(frozen=True)
class Write:
    """What an operator that writes becomes: ``value``, of the same arguments, is what its tensor has afterwards.
    ``parts``: that tensor and what it is a part of, then that and what it is a part of, as far as the whole is read
    later."""

    value: Rewrite
    parts: tuple[tuple[fx.Node, fx.Node], ...]


def plain_writes(graph: fx.Graph, written: list[fx.Node]) -> dict[fx.Node, Write] | None:
    """What each of ``written``, the nodes that write, becomes; None where one of them is more than a value."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    groups = _groups(graph)
    found: dict[fx.Node, Write] = {}
    for node in written:
        if node.target is torch.ops.aten.detach_.default:  # a constant that is made in forward
            found[node] = Write(first, ())
            continue
        rewrite = _value_of(node)
        target = node.args[0] if node.args else None
        if rewrite is None or not isinstance(target, fx.Node):
            return None
        parts = _parts(target)
        wholes, needed = [whole for _, whole in parts], 0
        older = [other for other in groups[target] if order[other] < order[node]]
        for other in groups[target]:
            if other.op != "call_function":
                return None  # a weight, or the picture
        for other in older:
            if other is not target and any(order[user] > order[node] for user in other.users):
                if other not in wholes:
                    return None
                needed = max(needed, wholes.index(other) + 1)
        if needed and not all(other in found or _moves(other) for other in older):
            return None
        found[node] = Write(rewrite, tuple(parts[:needed]))
    return found


def _parts(part: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """A tensor and what it is a part of, that and what it is a part of, and so on."""
    found = []
    while part.target in PLACED_IN and isinstance(whole := part.args[0], fx.Node):
        found.append((part, whole))
        part = whole
    return found


def _moves(node: fx.Node) -> bool:
    """Whether no two numbers of what a node gives lie in one place, as those of an expanded tensor do."""
    target = node.target
    name = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""
    return name in _MOVES or target is operator.getitem or not any(True for _ in _shared(node))


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
    elif is_composite(target) and schema.name.removeprefix("aten::") not in _OF_NEW:
        yield from node.all_input_nodes


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def is_composite(target: torch._ops.OpOverload) -> bool:
    """Whether torch itself computes an operator as others, whatever it is given."""
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
    rest = tensors[-1:] if name == "index_put" else tensors[2:] if name in _PLACES else tensors[1:]
    of_its_type = into.is_floating_point() or name in _PLACED or (name in _OF_INTEGERS and not into.is_complex())
    if any(value.dtype != into.dtype for value in rest) or not of_its_type:
        return None
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, schema.overload_name or "default", None)


def first(value: Any) -> Any:
    """What an operator leaves that says nothing of numbers."""
    return value


def second(_: Any, value: Any, *rest: Any) -> Any:
    """What a copy leaves in its first operand."""
    return value


def _sizes(tensor: Tensor) -> list[str]:
    return [str(getattr(getattr(length, "node", None), "expr", length)) for length in tensor.shape]
