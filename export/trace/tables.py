"""Which operators torch decomposes for ONNX, and by what: worked out once a process, not for each graph.

torch goes through all of its composite operators three times, and writes ten kernels into each: a third of the export
of a small network.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._subclasses.fake_impls import op_implementations_dict
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)

__all__ = ["Table", "Tables", "decomposed_by", "tables"]

Table = dict[Any, Callable[..., Any]]
_Kernels = dict[Any, dict[Any, Any]]  # of each operator: what Python runs for a dispatch key


@dataclass(frozen=True)
class Tables:
    """``whole``: every operator that is decomposed, and by what; ``composite`` those of them that torch itself would
    decompose in its kernel, with those that are kept whole; ``plain`` the others. None of them is written into."""

    whole: Table
    composite: Table
    plain: Table


def tables(written: frozenset[Any]) -> Tables:
    """Where ``written`` are the operators that have an ONNX form. Operators may be registered at any time."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    return _tables(written, frozenset(registered), len(decomposition_table))


@functools.lru_cache(maxsize=4)
def _tables(written: frozenset[Any], registered: frozenset[str], known: int) -> Tables:
    from torch.onnx._internal.exporter import _decomp

    whole = _decomp.create_onnx_friendly_decomposition_table(set(written))
    composite, plain = _split_decomp_table_to_cia_and_python_decomp(dict[Any, Any](whole))
    return Tables(whole, dict(composite), dict(plain))


@dataclass(frozen=True)
class _Prepared:
    """What torch's own context did: the kernels ``before`` (compared with what they are when it is asked for again) and
    ``inside``, and the rules by which fake tensors are then computed."""

    composite: Table
    before: _Kernels
    inside: _Kernels
    rules: Table


_prepared: list[_Prepared] = []


@contextlib.contextmanager
def decomposed_by(composite: Table) -> Iterator[None]:
    """Inside, composite operators run what ``composite`` says: torch's own context, whose work is kept."""
    before = _kernels(composite)
    kept = _prepared[0] if _prepared else None
    if kept is None or kept.composite is not composite or kept.before != before:
        with _override_composite_implicit_decomp(composite):
            rules = {op: op_implementations_dict[op] for op in composite}
            _prepared[:] = [_Prepared(composite, before, _kernels(composite), rules)]
            yield
        return
    added = {op: rule for op, rule in kept.rules.items() if op not in op_implementations_dict}
    op_implementations_dict.update(added)
    _put(kept.inside)
    try:
        yield
    finally:
        _put(before)
        for op in added:
            op_implementations_dict.pop(op, None)


def _kernels(operators: Table) -> _Kernels:
    return {op: dict(op.py_kernels) for op in operators}


def _put(kernels: _Kernels) -> None:
    for op, own in kernels.items():
        op.py_kernels.clear()
        op.py_kernels.update(own)
        op._dispatch_cache.clear()
