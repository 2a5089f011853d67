"""Symbolic numbers that are whole whatever the sizes are, as such."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

from clusir.export.trace.symbolic.logarithms import whole_log2

__all__ = ["exact", "to_whole"]


def _without_floats(expr: Any) -> Any:
    """An expression over sizes with its divisions exact, and whole floats as the integers that they are."""
    expr = expr.replace(lambda e: isinstance(e, (IntTrueDiv, FloatTrueDiv)), lambda e: e.args[0] / e.args[1])
    expr = expr.replace(lambda e: isinstance(e, ToFloat), lambda e: e.args[0])
    return expr.replace(lambda e: isinstance(e, sympy.Float) and float(e).is_integer(), lambda e: sympy.Integer(int(e)))


def exact(x: Any) -> Any:
    """A symbolic number that is whole whatever the sizes are, as such; None where it may be broken. Quotients of sizes
    that divide exactly are written as what they are: ``int(windows / (h * w / 8 / 8))`` is the batch, and not a chain
    of floats that every later shape drags along."""
    if isinstance(x, (int, torch.SymInt)):
        return x
    if isinstance(x, torch.SymFloat):
        env = x.node.shape_env
        plain = sympy.cancel(_without_floats(env.replace(x.node.expr)))
        if plain.is_Integer:
            return int(plain)
        symbols = sorted(plain.free_symbols, key=str)
        if (
            symbols
            and plain.is_polynomial(*symbols)
            and all(c.is_Integer for c in sympy.Poly(plain, *symbols).coeffs())
        ):
            return env.create_symintnode(plain, hint=int(x.node.hint))
    return None


def to_whole(x: Any) -> Any:
    """``int`` of a symbolic number, towards zero."""
    whole = exact(x)
    whole = whole_log2(x) if whole is None else whole
    return torch.sym_int(x) if whole is None else whole
