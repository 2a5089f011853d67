"""A traced program in which single operators are replaced by what a function makes of them; the rest is copied.

Tracing a whole program again to change a few of its operators costs as much as the first trace. Here only the
functions that stand for them are traced, on the fake tensors that the program keeps of its operands.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.export.graph_signature import TensorArgument
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from clusir.export.lowering.complex_pair import Pair
from clusir.export.lowering.values import PLACED_IN, Write, first, plain_writes, second

__all__ = ["NotSplicedError", "Splice", "of_vmap", "without_writes", "writes"]

_VMAP = ("_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim", "lazy_load_decompositions")
_ORIGIN = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` of every leaf of nested lists, tuples, dictionaries, slices and Pairs."""
    if isinstance(value, Pair):
        return Pair(_mapped(value.re, function), _mapped(value.im, function))
    if isinstance(value, dict):
        return {k: _mapped(v, function) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(v, function) for v in (value.start, value.stop, value.step)))
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(v, function) for v in value])
    return function(value)


def _in_order(operand: Any) -> Any:
    """A tensor of the same shape and type whose strides are plain: they are no part of ONNX, and torch takes another
    way for a transposed map, which ends in a write."""
    return torch.empty_like(operand, memory_format=torch.contiguous_format) if isinstance(operand, Tensor) else operand


def _key(function: Any, args: Any, kwargs: Any, leaves: dict[fx.Node, int]) -> Any:
    """Equal where ``function`` runs the same operators, its operands being of the same sizes and types, in plain order;
    None where that is not known."""

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            known = value.meta["val"]
            if isinstance(known, Tensor):
                return leaves[value], known.dtype, known.device, tuple(map(plain, known.shape))
            return leaves[value], plain(known)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return type(value), value.node.expr
        if isinstance(value, Tensor):
            raise TypeError("a constant")
        return type(value), repr(value) if isinstance(value, float) else value  # 1 equals 1.0 and True, 0.0 equals -0.0

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple((name, frozen(part)) for name, part in value.items())
        return (type(value), *map(frozen, value)) if isinstance(value, (list, tuple)) else plain(value)

    try:
        key = function, frozen(args), frozen(kwargs)
        hash(key)
    except TypeError:  # a slice, a Pair
        return None
    return key


class NotSplicedError(Exception):
    """What stands for an operator needs more than operators: a constant, or a write into a tensor."""


def writes(node: fx.Node) -> bool:
    """Whether a node of a traced graph calls an operator that changes one of its operands."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def of_vmap(node: fx.Node) -> bool:
    """Whether a node begins or ends what is run for all rows at once: nobody uses it, and the graph needs it."""
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith(_VMAP)


def without_writes(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program in which what is written into a tensor or a view is a function of it; returned unchanged where
    nothing is written. Nothing else is decomposed.

    Where writes are more than new values of a tensor, the program is run once more. Its guards, which say for which
    sizes it is, are left out of that run, which would prove each of them again: minutes for a hundred.
    """
    written = [node for node in program.graph.nodes if writes(node)]
    if not written:
        return program
    values = plain_writes(program.graph, written)
    if values is not None:
        return _with_values(program, values)
    guards, program._guards_code = program._guards_code, []
    try:
        made = program.run_decompositions({})
    finally:
        program._guards_code = guards
    made._guards_code = guards
    return made


def _with_values(program: torch.export.ExportedProgram, values: dict[fx.Node, Write]) -> torch.export.ExportedProgram:
    """The program with what ``values`` says in the place of nodes that write."""
    splice = Splice(program.graph)
    for node in program.graph.nodes:
        if node not in values:
            splice.copy(node)
            continue
        args, kwargs = splice.arguments(node)
        write = values[node]
        if write.value in (first, second):
            value = write.value(*args)
        else:
            value = splice.graph.call_function(write.value, args, kwargs)
            value.meta = dict(node.meta)
        for name in (node, node.args[0]):  # what is read of it from here on
            splice.values[name] = value
        for part, whole in write.parts:
            (before, *place), named = splice.arguments(part)
            value = splice.graph.call_function(PLACED_IN[part.target], (before, value, *place), named)
            value.meta = dict(whole.meta)
            splice.values[whole] = value
    made = splice.program(program, program.state_dict, program.constants)
    made._guards_code = program._guards_code
    return made


class Splice:
    """The new graph while it grows. ``values``: what stands for each node of the old one, a node, or nested nodes.
    ``table``: what decomposes operators in the functions that are traced (None: they stay as they are called)."""

    def __init__(self, old: fx.Graph, table: dict[Any, Callable[..., Any]] | None = None) -> None:
        self.graph = fx.Graph()
        self._table = table
        self._sizes: dict[Any, fx.Node] = {}
        self._traced: dict[Any, tuple[fx.GraphModule, Any]] = {}
        self.values: dict[fx.Node, Any] = {}
        self._mode = detect_fake_mode([node.meta.get("val") for node in old.nodes])

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of an old node with new nodes in the place of old ones."""
        made = _mapped((node.args, node.kwargs), lambda leaf: self.values[leaf] if isinstance(leaf, fx.Node) else leaf)
        return tuple(made[0]), dict(made[1])

    def copy(self, node: fx.Node) -> None:
        """The node as it is."""
        made = self.values[node] = self.graph.node_copy(node, lambda source: self.values[source])
        if node.op == "placeholder":
            made.name = node.name  # which the program's signature names; a new graph would call "input" otherwise
        if isinstance(node.meta.get("val"), torch.SymInt):
            self._sizes.setdefault(node.meta["val"].node.expr, made)

    def input_of_reals(self, node: fx.Node) -> fx.Node:
        """A placeholder of a complex tensor as one of ``[..., 2]`` reals."""
        placeholder = self.graph.node_copy(node)
        placeholder.name = node.name
        assert self._mode is not None
        with self._mode:
            placeholder.meta["val"] = torch.view_as_real(node.meta["val"].detach()).clone()
        return placeholder

    def made_by(self, origin: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The operators that ``function(*args, **kwargs)`` runs, added to the graph: what it returns, with nodes for
        tensors and symbolic sizes. ``origin``: the old node, whose line in the user's code they inherit."""
        leaves: dict[fx.Node, int] = {}
        _mapped((args, kwargs), lambda leaf: leaves.setdefault(leaf, len(leaves)) if isinstance(leaf, fx.Node) else 0)
        key = None if self._table is None else _key(function, args, kwargs, leaves)
        found = None if key is None else self._traced.get(key)
        if found is None:
            found = self._trace(function, args, kwargs, leaves)
            # Numbers that are no size are each run's own.
            if key is not None and not free_unbacked_symbols([node.meta.get("val") for node in found[0].graph.nodes]):
                self._traced[key] = found
        traced, shape = found
        made = self._inlined(origin, traced, list(leaves))
        return _mapped(shape, lambda leaf: made[leaf.number] if isinstance(leaf, _Place) else leaf)

    def _trace(
        self, function: Callable[..., Any], args: Any, kwargs: Any, leaves: dict[fx.Node, int]
    ) -> tuple[fx.GraphModule, Any]:
        """(What ``function`` runs on the nodes ``leaves``, what it returns with a :class:`_Place` for each value)."""
        shape: list[Any] = []

        def run(values: list[Any]) -> list[Any]:
            given = _mapped((args, kwargs), lambda leaf: values[leaves[leaf]] if isinstance(leaf, fx.Node) else leaf)
            results: list[Any] = []

            def place(leaf: Any) -> Any:
                if not isinstance(leaf, (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                    return leaf
                results.append(leaf)
                return _Place(len(results) - 1)

            shape.append(_mapped(function(*given[0], **given[1]), place))
            return results

        assert self._mode is not None
        with self._mode, torch.no_grad(), _use_lazy_graph_module(True):  # nobody calls it: no code is made of it
            operands = [leaf.meta["val"] for leaf in leaves]
            if self._table is not None:
                operands = [_in_order(operand) for operand in operands]
            traced = make_fx(run, self._table, pre_dispatch=self._table is None)(operands)
        return traced, shape[-1]

    def _inlined(self, origin: fx.Node, traced: fx.GraphModule, inputs: list[fx.Node]) -> list[Any]:
        placeholders = iter(inputs)
        inner: dict[fx.Node, fx.Node] = {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                inner[node] = next(placeholders)
            elif node.op == "output":
                return [inner[value] if isinstance(value, fx.Node) else value for value in node.args[0]]
            elif self._table is not None and (known := self._known(node)) is not None:
                inner[node] = known
            else:
                if node.op != "call_function" or writes(node):
                    raise NotSplicedError(f"{origin.target} becomes {node.op} {node.target}")
                inner[node] = self.graph.node_copy(node, lambda source: inner[source])
                inner[node].meta.update({key: origin.meta[key] for key in _ORIGIN if key in origin.meta})
        raise AssertionError("a graph ends with its output")

    def _known(self, node: fx.Node) -> fx.Node | None:
        """The node of this graph that gives the same size, where there is one."""
        value = node.meta.get("val")
        return self._sizes.get(value.node.expr) if isinstance(value, torch.SymInt) else None

    def program(
        self, exported: torch.export.ExportedProgram, state: dict[str, Any], constants: dict[str, Any]
    ) -> torch.export.ExportedProgram:
        """The old program with the new graph, and ``state`` and ``constants`` as its weights."""
        self.graph.eliminate_dead_code(lambda node: node.is_impure() or of_vmap(node))
        signature = copy.deepcopy(exported.graph_signature)
        (returned,) = self.graph.output_node().args
        for spec, node in zip(signature.output_specs, returned, strict=True):  # type: ignore[arg-type]
            if isinstance(spec.arg, TensorArgument):
                spec.arg = TensorArgument(name=node.name)
        module = fx.GraphModule(exported.graph_module, self.graph)
        module.meta.update(exported.graph_module.meta)
        return exported._update(module, signature, state_dict=state, constants=constants)


class _Place:
    """Where a result of the traced function goes."""

    def __init__(self, number: int) -> None:
        self.number = number
