"""Logarithms of a symbolic size: how many levels a pyramid has, the next power of two, a scale that follows the tokens.

``math.log2(h)`` has to be a number, which pins ``h``. While a model is traced it is a tensor of one number, and where
code makes a whole number of it, that is counted in whole numbers: a float's logarithm of 64 may be 5.9999995.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloatTrueDiv, OpaqueUnaryFn_log2, ToFloat

__all__ = ["log", "log2", "log10", "whole_log2"]

_MOST_POWER = 15  # sizes below 65,536, which is what a size rule knows


def log2(x: Any) -> Any:
    """``math.log2`` of a symbol, as a tensor of one number."""
    return torch.log2(torch.scalar_tensor(x, dtype=torch.get_default_dtype()))


def log(x: Any, base: Any = math.e) -> Any:
    """``math.log``, of any base that is a number."""
    return log2(x) if base == 2 else log2(x) / math.log2(base)


def log10(x: Any) -> Any:
    """``math.log10``."""
    return log2(x) / math.log2(10)


def whole_log2(x: Any, *, up: bool = False) -> Any:
    """A symbolic logarithm of a size (``torch._sym_log2``, or a multiple of it that is of another whole base) rounded
    down, or ``up``; None for other numbers."""
    found = _size_and_base(x.node.expr) if isinstance(x, torch.SymFloat) else None
    if found is None or not found[0].is_integer:
        return None
    size, base = found
    env = x.node.shape_env
    n = env.create_symintnode(size, hint=round(base ** float(x.node.hint)))
    n = n - 1 if up else n
    powers = range(not up, int(_MOST_POWER / math.log2(base)) + 1)
    return sum(torch.sym_min(1, n // base**power) for power in powers)


def _size_and_base(expr: sympy.Expr) -> tuple[sympy.Expr, int] | None:
    """What an expression is the logarithm of, and of which whole base; None where it is none."""
    factor = 1.0
    if isinstance(expr, FloatTrueDiv) and expr.args[1].is_number:
        expr, factor = expr.args[0], float(expr.args[1])
    elif isinstance(expr, sympy.Mul) and len(expr.args) == 2 and expr.args[0].is_number:
        expr, factor = expr.args[1], 1 / float(expr.args[0])
    if not isinstance(expr, OpaqueUnaryFn_log2) or not 1 <= factor <= _MOST_POWER:
        return None
    base = round(2**factor)
    size = expr.args[0].args[0] if isinstance(expr.args[0], ToFloat) else expr.args[0]
    return (size, base) if math.isclose(math.log2(base), factor, rel_tol=1e-12) and _is_exact(base) else None


def _is_exact(base: int) -> bool:
    """Whether Python's own logarithms of the base's powers are whole: ``math.log(243, 3)`` is 4.999999999999999, of
    which the user's code makes 4."""
    powers = range(1, int(_MOST_POWER / math.log2(base)) + 2)
    return all(math.log(base**power, base) == power for power in powers)
