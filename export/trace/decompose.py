"""A traced program in operators that have an ONNX form: made anew is only what has none.

torch's exporter runs the whole program again to decompose a tenth of its operators, twice, and a third time to see
where types are promoted. With symbolic sizes each run costs as much as the trace: of the seconds that writing a graph
takes, nine in ten were these three.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import traceback as fx_traceback

from clusir.export.lowering.splice import NotSplicedError, Splice, of_vmap, writes
from clusir.export.lowering.values import is_composite
from clusir.export.quiet import replaced
from clusir.export.trace.tables import Tables, decomposed_by, tables

__all__ = ["quick_decompositions"]

# Second names of operators: torch's pass that casts operands of several types to one knows the first names alone.
_OTHER_NAMES = frozenset(
    getattr(torch.ops.aten, name)
    for name in """subtract multiply divide true_divide less less_equal greater greater_equal not_equal arctan2 absolute
    negative""".split()  # noqa: SIM905
)
# torch's exporter writes those of several tensors (hstack, dstack) with sequences, which OpenVINO has no form for.
_SEQUENCES = frozenset((torch.ops.aten.atleast_1d, torch.ops.aten.atleast_2d, torch.ops.aten.atleast_3d))


@contextlib.contextmanager
def quick_decompositions() -> Iterator[None]:
    """Inside, torch's ONNX exporter decomposes operator by operator."""
    from torch.onnx._internal.exporter import _fx_passes

    whole = _fx_passes.insert_type_promotion_nodes
    with (
        replaced(_fx_passes, "decompose_with_registry", _decomposed),
        replaced(_fx_passes, "insert_type_promotion_nodes", lambda module: _promoted(module) or whole(module)),
    ):
        yield


def _decomposed(program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
    """What ``program.run_decompositions`` makes of it; that itself where a part cannot be made alone, or where one is
    left that has no ONNX form: only a run of the whole sees what the kernel of such an operator calls (windows of
    Bartlett), and what vmap adds."""
    from torch.onnx._internal.exporter import _decomp

    written = {
        o
        for o in _decomp.get_onnx_implemented_overloads(registry)
        if getattr(o, "overloadpacket", None) not in _OTHER_NAMES | _SEQUENCES
    }
    table = tables(frozenset(written))
    if all(_plain(node) for node in program.graph.nodes):
        with contextlib.suppress(NotSplicedError):
            made = _spliced(program, table)
            if all(_is_written(node, registry) for node in made.graph.nodes):
                return made
    return program.run_decompositions(dict(table.whole))


def _is_written(node: fx.Node, registry: Any) -> bool:
    """Whether the exporter writes what a node calls, or leaves it out: a check of sizes has no form, and needs none."""
    if node.op != "call_function" or node.target is operator.getitem or registry.is_registered(node.target):
        return True
    check = ("aten::_assert", "aten::sym_constrain")
    return isinstance(node.target, torch._ops.OpOverload) and node.target.name().startswith(check)


def _plain(node: fx.Node) -> bool:
    """Whether a node neither writes into a tensor, which only a run of the whole turns into values, nor holds a graph
    of its own, nor belongs to a vmap, inside which operands have an axis less than they seem to."""
    return node.op not in ("get_attr", "call_module") and not (
        isinstance(node.target, torch._ops.HigherOrderOperator) or writes(node) or of_vmap(node)
    )


def _spliced(program: torch.export.ExportedProgram, table: Tables) -> torch.export.ExportedProgram:
    composite, plain = table.composite, table.plain
    kept = set(composite) - set(table.whole)

    def stays(target: Any) -> bool:
        if not isinstance(target, torch._ops.OpOverload) or target in kept:
            return True
        return target not in composite and target not in plain and not is_composite(target)

    splice = Splice(program.graph, plain)
    with decomposed_by(composite), enable_python_dispatcher():
        for node in program.graph.nodes:
            args, kwargs = splice.arguments(node)
            if node.target is operator.getitem and not isinstance(args[0], fx.Node):
                splice.values[node] = args[0][args[1]]
            elif node.target is torch.ops.aten.sym_numel.default:
                splice.values[node] = splice.made_by(node, _count, *args)
            elif node.op != "call_function" or stays(node.target):
                splice.copy(node)
            else:
                splice.values[node] = splice.made_by(node, node.target, *args, **kwargs)
    return splice.program(program, program.state_dict, program.constants)


def _count(x: torch.Tensor) -> Any:
    """How many elements a tensor has, by its sizes: the exporter writes these."""
    return functools.reduce(operator.mul, x.shape, 1)


def _promoted(module: fx.GraphModule) -> bool:
    """Casts where an operator's operands have several types, as torch's pass puts them; False, and nothing done, where
    what a node gives is not known without running it."""
    from torch.onnx._internal.fx.passes import type_promotion

    nodes = list(module.graph.nodes)
    if any(node.op == "get_attr" or (node.users and "val" not in node.meta) for node in nodes):
        return False
    step = type_promotion.InsertTypePromotion(module)
    run = step.interpreter
    run.env = {node: node.meta["val"] for node in nodes if "val" in node.meta}
    assert step.fake_mode is not None
    with step.fake_mode, enable_python_dispatcher(), fx_traceback.preserve_node_meta():
        for node in nodes:
            rule = type_promotion.get_type_promotion_rule(node, run.type_promotion_table)
            if rule is not None:
                with run._set_current_node(node):
                    run._maybe_promote_node(node, rule)
    return True
