"""Sizes that are whole multiples, named: a padded map of ``8 * s`` rows instead of ``h + (8 - h % 8) % 8``.

A tracer carries every size as an expression of height and width. Padding to whole patches, or an input that has to be a
multiple of 32, makes expressions of remainders and floors, and each later reshape asks whether they divide: minutes for
a few blocks. Here such a size becomes a symbol of its own, "the number of patches", as soon as it appears; everything
behind it is then a polynomial. Code that pads and then works the padded size out once more (``h + pad``) gets the same
symbol. What the symbol means is kept, so that the guards of the trace, which say for which sizes it holds, are still
about height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Mod, ModularIndexing, PythonMod

__all__ = ["common_factor", "pad_whole", "padded_whole", "with_counts"]

_DIVISIONS = (FloorDiv, Mod, ModularIndexing, PythonMod)
_MOST_TRIALS = 1024
_NAMES = "_clusir_named_sizes"


@torch.library.custom_op("clusir::pad_whole", mutates_args=())
def pad_whole(x: Tensor, pads: Sequence[int], mode: str, value: float, factors: Sequence[int]) -> Tensor:
    """``F.pad(x, pads, mode, value)``; axis -1 - i of it is known to be a multiple of ``factors[i]`` (1: nothing)."""
    padded = F.pad(x, list(pads), mode, value) if mode == "constant" else F.pad(x, list(pads), mode)
    return padded.clone() if padded is x else padded


@pad_whole.register_fake
def _(x: Tensor, pads: Sequence[int], mode: str, value: float, factors: Sequence[int]) -> Tensor:
    shape: list[Any] = list(x.shape)
    for number, factor in enumerate(factors):
        axis = x.dim() - 1 - number
        length = shape[axis] + pads[2 * number] + pads[2 * number + 1]
        shape[axis] = length if factor == 1 else _named(length, factor)
    return x.new_empty(shape)


def _named(length: Any, factor: int) -> Any:
    """``factor`` times a symbol of its own, the same for the same length; as it is where a name would not help."""
    if not isinstance(length, torch.SymInt):
        return length
    env: ShapeEnv = length.node.shape_env
    meaning = env.replace(length.node.expr)
    names: dict[Any, Any] = env.__dict__.setdefault(_NAMES, {})
    if (meaning, factor) not in names:
        count, rest = divmod(int(length.node.hint), factor)
        if rest or count < 2:  # one patch would be taken for a constant
            return length
        source = ConstantSource(f"clusir_whole_{len(names)}")
        names[meaning, factor] = env.create_symbol(count, source, DimDynamic.DYNAMIC)
        env._replacements_version_counter += 1  # sizes that were read before are read anew
        if len(names) == 1:
            _recognise(env)
            _keep_guards_meaningful(env)
    return env.create_symintnode(factor * names[meaning, factor], hint=int(length.node.hint))


def _recognise(env: ShapeEnv) -> None:
    """Let an expression that means a named size be that name wherever a size is read."""
    plain, names = env.replace, env.__dict__[_NAMES]
    known: dict[Any, Any] = {}
    state: list[Any] = [None]

    def replaced(expr: Any) -> Any:
        now = (env._replacements_version_counter, len(names))
        if state[0] != now:
            known.clear()
            state[0] = now
        if expr not in known:
            meanings = {meaning: factor * symbol for (meaning, factor), symbol in reversed(names.items())}
            known[expr] = plain(expr).xreplace(meanings)
        return known[expr]

    env.__dict__["replace"] = replaced


def _keep_guards_meaningful(env: ShapeEnv) -> None:
    """Let the guards be about the sizes of the input again as soon as torch.export asks for them."""
    produce = env.produce_guards

    def produced(*args: Any, **kwargs: Any) -> Any:
        env.guards = [guard._replace(expr=_spelt_out(env, guard.expr)) for guard in env.guards]
        recognising = env.__dict__.pop("replace")
        try:
            return produce(*args, **{**kwargs, "guards": []})
        finally:
            env.__dict__["replace"] = recognising

    env.produce_guards = produced  # type: ignore[method-assign]


def _spelt_out(env: ShapeEnv, expr: Any) -> Any:
    names = {symbol: FloorDiv(meaning, factor) for (meaning, factor), symbol in env.__dict__[_NAMES].items()}
    while expr.free_symbols & names.keys():
        expr = expr.xreplace(names)
    return expr


def padded_whole(x: Tensor, pads: Sequence[Any], mode: str, value: float | None) -> Tensor | None:
    """``F.pad(x, pads, mode, value)`` with the padded sizes named; None where none is a multiple of anything."""
    factors = []
    for number in range(len(pads) // 2):
        length = x.shape[x.dim() - 1 - number] + pads[2 * number] + pads[2 * number + 1]
        factors.append(common_factor(length))
    if all(factor == 1 for factor in factors):
        return None
    return with_counts(pad_whole(x, list(pads), mode, 0.0 if value is None else float(value), factors), factors)


def with_counts(padded: Tensor, factors: Sequence[int]) -> Tensor:
    """``padded`` itself; the tracer is shown how many times a factor its sizes are: half of ``8 * s`` is made of s."""
    for number, factor in enumerate(factors):
        length: Any = padded.shape[padded.dim() - 1 - number]
        if factor > 1 and isinstance(length, torch.SymInt):
            length.node.shape_env.__dict__.setdefault(f"{_NAMES}_counts", []).append(length // factor)
    return padded


def common_factor(length: Any) -> int:
    """The largest number by which a symbolic length was divided somewhere and that it is always a multiple of."""
    if not isinstance(length, torch.SymInt):
        return 1
    env: ShapeEnv = length.node.shape_env
    expr = env.replace(length.node.expr)
    known: dict[Any, int] = env.__dict__.setdefault(_NAMES + "_factors", {})
    if expr not in known:
        divisors = {int(part.args[-1]) for part in expr.atoms(*_DIVISIONS) if part.args[-1].is_Integer}
        known[expr] = next((d for d in sorted(divisors, reverse=True) if d > 1 and _divides(d, expr, divisors)), 1)
    return known[expr]


def _divides(divisor: int, expr: Any, divisors: set[int]) -> bool:
    """Whether ``expr``, of remainders by ``divisors``, is a multiple of ``divisor`` at the lengths of two periods."""
    return all(expr.xreplace(at) % divisor == 0 for at in _trials(expr, math.prod(divisors)))


def _trials(expr: Any, period: int) -> Iterator[dict[Any, Any]]:
    symbols = sorted(expr.free_symbols, key=str)
    for n in range(1, min(2 * period, _MOST_TRIALS) + 1):
        yield {symbol: sympy.Integer(n + 7 * i * n) for i, symbol in enumerate(symbols)}
