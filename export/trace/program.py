"""Somebody else's model as a traced program with dynamic height and width.

Four things stop ``torch.export`` on published restorers although the network itself is an ordinary function of the
picture: helper functions that insist on Python numbers for a size (``fftfreq(h)``, ``linspace(..., h)``), ``int(h /
2)`` of a size, writes to a window whose bounds are tensors (``mask[:, :, h // 2 - n : h // 2 + n] = 1`` with ``n``
computed by the network), and loops over the batch. The first three are replaced while tracing by forms that trace
(:class:`Traceable`, :func:`symbolic_integers`), without touching the user's code; the last keeps its batch size.
Everything else that depends on data is refused with the line.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import ClusirError, UnsupportedModelError
from clusir.export.experts.registry import dense_blocks
from clusir.export.lowering.complex import lower_complex
from clusir.export.subjects.checks import first_tensor
from clusir.export.subjects.user_code import innermost_user_line, line_of_node
from clusir.export.trace.integers import symbolic_integers
from clusir.export.trace.substitutes import Traceable

__all__ = ["TracedModel", "trace_module"]

_ADVICE = (
    "describe the routed block with clusir.export.experts.registry.register_moe (experts, gate, how to combine), "
    "see docs/bring-your-own-model.md"
)


@dataclass(frozen=True)
class TracedModel:
    """A traced program and what its trace fixed: whether batch, height and width stayed dynamic.

    ``program`` is free of complex tensors; ``original`` is the trace before that, whose guards say for which sizes.
    """

    program: torch.export.ExportedProgram
    original: torch.export.ExportedProgram
    dynamic_batch: bool
    dynamic_size: bool
    traced_size: tuple[int, int]
    notes: tuple[str, ...]


def trace_module(module: nn.Module, image: Tensor, *, batches: bool = True) -> TracedModel:
    """Trace an eval-mode module of one image input (float32, BxCxHxW) with dynamic batch, height and width.

    Where the code fixes the batch (a Python loop over it) or the size, the trace is repeated with that axis static and
    a note says so. ``batches``: whether the module takes more than one picture at all. Raises
    UnsupportedModelError, with file and line, where control flow depends on pixel values.
    """
    auto = torch.export.Dim.AUTO
    pair = torch.cat([image, image.flip(-1)]) if image.shape[0] == 1 else image
    attempts: list[tuple[Tensor, tuple[int, ...]]] = [(pair, (0, 2, 3)) if batches else (image, (2, 3))]
    notes: list[str] = []
    while attempts:
        sample, axes = attempts.pop(0)
        dynamic = dict.fromkeys(axes, auto)
        program = _trace_once(module, sample, dynamic)
        fixed = [axis for axis in axes if not _free(_input_shape(program)[axis])]
        if not fixed:
            with _quiet(), torch.no_grad():
                lowered = lower_complex(program, sample, dynamic)
            return TracedModel(lowered, program, 0 in axes, 2 in axes, (image.shape[2], image.shape[3]), tuple(notes))
        if 0 in fixed:
            notes.append(f"the model's code fixes the batch: exported with batch {image.shape[0]}")
        if 2 in fixed or 3 in fixed:
            notes.append(f"the model's code fixes the size: exported for {image.shape[2]}x{image.shape[3]} only")
        wanted = tuple(axis for axis in axes if not (axis in fixed or (axis > 1 and {2, 3} & set(fixed))))
        attempts = [(pair if 0 in wanted else image, wanted)]
    raise AssertionError("a trace without dynamic axes fixes none")  # pragma: no cover


def _trace_once(module: nn.Module, sample: Tensor, dynamic: dict[int, Any]) -> torch.export.ExportedProgram:
    def trace() -> torch.export.ExportedProgram:
        return torch.export.export(_Wrapper(module), (sample,), dynamic_shapes=(dynamic,), strict=False)

    with _quiet(), torch.no_grad():
        try:
            try:
                with symbolic_integers(module):
                    program = trace()
            except TypeError:  # code that hands the name int itself to somebody who knows only Python's own
                program = trace()
        except ClusirError:
            raise
        except Exception as error:
            raise _explain(error) from error
        _refuse_data_dependent_shapes(program)
        return program


def _explain(error: Exception) -> UnsupportedModelError:
    line = innermost_user_line(error.__traceback__)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in reason or "data dependent" in reason:
        return UnsupportedModelError(
            f"{line}: what runs here depends on the picture, a trace would keep one route: {_ADVICE}"
        )
    return UnsupportedModelError(f"{line}: torch.export cannot trace this ({kind}: {reason[:200]}); {_ADVICE}")


def _refuse_data_dependent_shapes(program: torch.export.ExportedProgram) -> None:
    """A tensor whose size depends on pixel values (``nonzero``, ``x[mask]``) is the mark of undescribed routing."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            symbols = getattr(getattr(item, "node", None), "expr", None) if isinstance(item, torch.SymInt) else None
            sizes = list(item.shape) if isinstance(item, Tensor) else []
            found = set().union(*(_free(s) for s in sizes)) | (_free(item) if symbols is not None else set())
            if any(str(s).startswith(("u", "zuf")) for s in found):
                raise UnsupportedModelError(
                    f"{line_of_node(node)}: the size of this tensor depends on the picture: {_ADVICE}"
                )


def _free(size: Any) -> set[Any]:
    """The symbols of a size; none for a number, also where the trace has pinned a symbol to one."""
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _input_shape(program: torch.export.ExportedProgram) -> Sequence[Any]:
    name = program.graph_signature.user_inputs[0]
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == name)
    shape: Sequence[Any] = node.meta["val"].shape
    return shape


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch prints the half-traced graph on a data-dependent failure; the refusal says it in one line."""
    loggers = [logging.getLogger(n) for n in ("torch.fx.experimental.symbolic_shapes", "torch._export", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Wrapper(nn.Module):
    """The user's model with :class:`Traceable` around its forward (inside torch.export's own mode, hence first)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The restored picture, then the gate of every call of a described block."""
        blocks = dense_blocks(self.model)
        for block in blocks:
            block.gates.clear()
        with Traceable():
            restored = first_tensor(self.model(image))
        gates = [gate for block in blocks for gate in block.gates]
        for block in blocks:
            block.gates = []
        return (restored, *gates)
