"""Lets ``custom_translation_table`` replace an operator whose input is complex.

torch 2.13 registers every function of that table as "takes real input" (``is_complex=False``) and, where an operand is
complex, dispatches only to functions that say otherwise: a replacement for ``aten._fft_c2c`` would be ignored without a
word, and torch's own lowering used. The table offers no way to say it, so a function says it itself (``takes_complex``)
and the registry is taught to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["takes_complex", "teach_registry"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_clusir_takes_complex"


def takes_complex(function: F) -> F:
    """Marks a translation function whose operand is complex (it receives ``[..., 2]`` reals)."""
    setattr(function, _MARK, True)
    return function


def teach_registry() -> None:
    """Makes torch's ONNX registry honour :func:`takes_complex`. Does nothing the second time."""
    from torch.onnx._internal.exporter import _registration

    register = _registration.ONNXRegistry.register_op
    if getattr(register, _MARK, False):
        return

    def register_op(self: Any, target: Any, function: Callable[..., Any], is_complex: bool = False) -> None:
        register(self, target, function, is_complex=is_complex or getattr(function, _MARK, False))

    setattr(register_op, _MARK, True)
    _registration.ONNXRegistry.register_op = register_op  # type: ignore[method-assign]
