"""Lets ``custom_translation_table`` replace an operator whose input is complex.

torch 2.13 registers every function of that table as "takes real input" (``is_complex=False``) and, where an operand is
complex, dispatches only to functions that say otherwise: a replacement for ``aten._fft_c2c`` would be ignored without a
word, and torch's own lowering used. The table offers no way to say it, so a function says it itself (``takes_complex``)
and the registry is taught to ask, for the time of one export.

torch also reads the signatures of all its 500 translations anew for each graph, from their source text: half a second,
of the 0.7 that a small graph takes. Here they are read once a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from clusir.export.quiet import replaced

__all__ = ["takes_complex", "taught_registry"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_clusir_takes_complex"
_KEPT: dict[int, Any] = {}  # torch's registry as it reads it, by opset


def takes_complex(function: F) -> F:
    """Marks a translation function whose operand is complex (it receives ``[..., 2]`` reals)."""
    setattr(function, _MARK, True)
    return function


@contextmanager
def taught_registry() -> Iterator[None]:
    """Inside, torch's ONNX registry honours :func:`takes_complex`, and a new one is a copy of what was read before;
    afterwards it is torch's own again."""
    from torch.onnx._internal.exporter import _registration

    kind = _registration.ONNXRegistry
    register, read = kind.register_op, kind.from_torchlib

    def register_op(self: Any, target: Any, function: Callable[..., Any], is_complex: bool = False) -> None:
        register(self, target, function, is_complex=is_complex or getattr(function, _MARK, False))

    def from_torchlib(cls: Any, opset_version: int = kind().opset_version) -> Any:
        if opset_version not in _KEPT:
            _KEPT[opset_version] = read(opset_version=opset_version)
        kept, made = _KEPT[opset_version], cls()
        made._opset_version = kept._opset_version
        made.functions = {target: list(found) for target, found in kept.functions.items()}
        return made

    with replaced(kind, "register_op", register_op), replaced(kind, "from_torchlib", classmethod(from_torchlib)):
        yield
