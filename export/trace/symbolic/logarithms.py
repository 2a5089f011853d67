"""Logarithms of a symbolic size: how many levels a pyramid has, the next power of two, a scale that follows the tokens.

``math.log2(h)`` has to be a number, which pins ``h``. While a model is traced it is a tensor of one number, and where
code makes a whole number of it, that is counted in whole numbers: a float's logarithm of 64 may be 5.9999995.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._sympy.functions import OpaqueUnaryFn_log2, ToFloat

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
    """A symbolic logarithm (``torch._sym_log2`` of a size) rounded down, or ``up``; None for other numbers."""
    expr = x.node.expr if isinstance(x, torch.SymFloat) else None
    if not isinstance(expr, OpaqueUnaryFn_log2):
        return None
    size = expr.args[0].args[0] if isinstance(expr.args[0], ToFloat) else expr.args[0]
    if not size.is_integer:
        return None
    env = x.node.shape_env
    n = env.create_symintnode(size, hint=round(2 ** float(x.node.hint)))
    n = n - 1 if up else n
    return sum(torch.sym_min(1, n // 2**power) for power in range(not up, _MOST_POWER + 1))
