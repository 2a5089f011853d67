"""Symbolic sizes as keys: ``functools.lru_cache`` around a function of height and width, tables kept by size in a dict.

torch's symbols have no hash, on purpose: a library that looks up a number would find nothing and take another path for
good. In the user's own code a symbol is a key that equals itself, so that what was kept for a size is found again in
the same trace, and made anew in the next one. Where the code knows plain numbers as keys (``h in {256, 512}``, a table
of positions for each of three sizes), whether a size is among them is a question about its value, and stays refused.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch

from clusir.export.quiet import replaced
from clusir.export.subjects.user_code import is_users

__all__ = ["sizes_as_keys"]


def _is_number(key: Any) -> bool:
    return type(key) in (int, float) or (isinstance(key, tuple) and any(map(_is_number, key)))


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, (dict, set, frozenset)) and any(map(_is_number, value))


def _knows_numbers(frame: FrameType) -> bool:
    """Whether a function sees a set or dictionary whose keys are plain numbers, or tuples of them."""
    own = [value for held in frame.f_locals.values() for value in getattr(held, "__dict__", {}).values()]
    seen = (*frame.f_locals.values(), *frame.f_code.co_consts, *own)
    called = (frame.f_globals.get(name) for name in frame.f_code.co_names)
    return any(map(_holds_numbers, (*seen, *called)))


def _hash_of(symbol: Any) -> int:
    frame = sys._getframe(1)
    node = symbol.node
    if not is_users(frame.f_code.co_filename) or _knows_numbers(frame):
        raise TypeError("unhashable type: a size of the picture, looked up among numbers")
    return hash((id(node.shape_env), node.expr))


def sizes_as_keys() -> AbstractContextManager[None]:
    """Inside, symbolic sizes are keys in the user's code."""
    return replaced(torch.SymInt, "__hash__", _hash_of)
