"""Lets ``custom_translation_table`` replace an operator whose input is complex.

torch 2.13 registers every function of that table as "takes real input" (``is_complex=False``) and, where an operand is
complex, dispatches only to functions that say otherwise: a replacement for ``aten._fft_c2c`` would be ignored without a
word, and torch's own lowering used. The table offers no way to say it, so a function says it itself (``takes_complex``)
and the registry is taught to ask, for the time of one export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["takes_complex", "taught_registry"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_clusir_takes_complex"


def takes_complex(function: F) -> F:
    """Marks a translation function whose operand is complex (it receives ``[..., 2]`` reals)."""
    setattr(function, _MARK, True)
    return function


@contextmanager
def taught_registry() -> Iterator[None]:
    """Inside, torch's ONNX registry honours :func:`takes_complex`; afterwards it is torch's own again."""
    from torch.onnx._internal.exporter import _registration

    register = _registration.ONNXRegistry.register_op

    def register_op(self: Any, target: Any, function: Callable[..., Any], is_complex: bool = False) -> None:
        register(self, target, function, is_complex=is_complex or getattr(function, _MARK, False))

    _registration.ONNXRegistry.register_op = register_op  # type: ignore[method-assign]
    try:
        yield
    finally:
        if _registration.ONNXRegistry.register_op is register_op:
            _registration.ONNXRegistry.register_op = register  # type: ignore[method-assign]
