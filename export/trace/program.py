"""Somebody else's model as a traced program with dynamic height and width.

Much stops ``torch.export`` on published restorers although the network itself is an ordinary function of the picture:
numbers made of a size (``int(h / 2)``), helper functions that insist on such numbers (``fftfreq(h)``), writes to a
window or through a mask, pools and kernels that follow the size. They are replaced while tracing by forms that trace
(:class:`Traceable`, :func:`symbolic_numbers`), without touching the user's code. A Python loop over the batch keeps its
batch size where it cannot be run for all pictures at once. Everything else that depends on data is refused with the
line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import ClusirError, UnsupportedModelError
from clusir.export.experts.registry import dense_blocks
from clusir.export.lowering.complex import lower_complex
from clusir.export.lowering.splice import without_writes
from clusir.export.lowering.whole import pad_whole, with_counts
from clusir.export.quiet import hushed, printing_to
from clusir.export.scans.registry import as_described, described_scans
from clusir.export.subjects.checks import first_tensor
from clusir.export.subjects.copies import copied
from clusir.export.subjects.user_code import innermost_user_line, line_of_node
from clusir.export.trace.loops import LoopNotCapturedError, Loops
from clusir.export.trace.quick import quick_tracing, quick_views
from clusir.export.trace.substitutes import Traceable
from clusir.export.trace.symbolic.constants import Constants
from clusir.export.trace.symbolic.numbers import symbolic_numbers

__all__ = ["FixedSizeError", "TracedModel", "UntraceableError", "random_draw", "trace_module"]

_ADVICE = (
    "describe the routed block with clusir.export.experts.registry.register_moe (experts, gate, how to combine), "
    "see docs/bring-your-own-model.md"
)


_MOST_TURNS = 64  # of a loop that follows the picture's size and is unrolled all the same


class UntraceableError(UnsupportedModelError):
    """The tracer failed, and not because of pixel values: at another size, or at one fixed size, it may not."""


class FixedSizeError(UntraceableError):
    """The trace took height or width for a constant."""


@dataclass(frozen=True)
class TracedModel:
    """A traced program and what its trace fixed: whether batch, height and width stayed dynamic.

    ``program`` is free of complex tensors; ``original`` is the trace before that, whose guards say for which sizes.
    Neither writes into a tensor.
    """

    program: torch.export.ExportedProgram
    original: torch.export.ExportedProgram
    dynamic_batch: bool
    dynamic_size: bool
    traced_size: tuple[int, int]
    notes: tuple[str, ...]


def trace_module(
    module: nn.Module,
    image: Tensor,
    *,
    batches: bool = True,
    sizes: bool = True,
    multiple: int = 1,
    before: Callable[[], None] = lambda: None,
) -> TracedModel:
    """Trace an eval-mode module of one image input (float32, BxCxHxW) that has not run, at the size of ``image``.

    ``batches`` and ``sizes``: whether the batch, and height and width, are to be dynamic; these are multiples of
    ``multiple``, which makes every size inside simpler. Where the code fixes the
    batch (a Python loop over it), the trace is repeated with that axis static and a note says so. ``before`` is called
    in front of each trace, to forget what another run has cached outside the module. Raises FixedSizeError where the
    code fixes the size, UntraceableError where torch cannot trace it, and UnsupportedModelError, with file and line,
    where control flow depends on pixel values.
    """
    pair = torch.cat([image, image.flip(-1)]) if image.shape[0] == 1 else image
    notes: list[str] = []
    unrolled: frozenset[str] = frozenset()
    while True:
        sample = pair if batches else image
        axes = (*((0,) if batches else ()), *((2, 3) if sizes else ()))
        dynamic = dict.fromkeys(axes, torch.export.Dim.AUTO)
        before()
        loops = Loops(unrolled)
        try:
            program = _trace_once(module, sample, dynamic, multiple if sizes else 1, loops)
        except LoopNotCapturedError as error:
            if error.symbolic and error.turns > _MOST_TURNS:
                raise
            unrolled |= {error.line}
            continue
        except UntraceableError:  # what stands in for all turns of a loop over the batch may be the reason
            if not loops.over_batch:
                raise
            unrolled |= loops.over_batch
            continue
        fixed = [axis for axis in axes if not _free(_input_shape(program)[axis])]
        if 2 in fixed or 3 in fixed:
            raise FixedSizeError("the model's code fixes the size")
        if 0 not in fixed:
            break
        notes.append(f"the model's code fixes the batch: exported with batch {image.shape[0]}")
        batches = False
    with _quiet(), quick_tracing(), quick_views(), torch.no_grad():
        program = without_writes(program)  # once, for all that read it
        lowered = lower_complex(program)
    return TracedModel(lowered, program, batches, sizes, (image.shape[2], image.shape[3]), tuple(notes))


def _trace_once(
    module: nn.Module, sample: Tensor, dynamic: dict[int, Any], multiple: int, loops: Loops
) -> torch.export.ExportedProgram:
    def trace() -> torch.export.ExportedProgram:
        shared: dict[int, Any] = {id(p): p for p in module.parameters()}
        unrun = copied(module, shared)  # what a forward caches in self is the trace's, and not the next one's
        return torch.export.export(_Wrapper(unrun, multiple, loops), (sample,), dynamic_shapes=(dynamic,), strict=False)

    with _quiet(), quick_tracing(), torch.no_grad():
        try:
            try:
                with described_scans(module, as_described), symbolic_numbers(module, loops):
                    program = trace()
            except TypeError:  # code that hands the name int itself to somebody who knows only Python's own
                with described_scans(module, as_described):
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
            f"{line}: control flow depends on input values; torch.export would record one branch only: {_ADVICE}"
        )
    return UntraceableError(f"{line}: torch.export cannot trace this ({kind}: {reason[:200]})")


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


_DRAWS = frozenset(
    """rand randn randint rand_like randn_like randint_like normal normal_functional uniform bernoulli multinomial
    exponential random randperm log_normal cauchy geometric poisson native_dropout dropout""".split()  # noqa: SIM905
)


def random_draw(program: torch.export.ExportedProgram) -> str:
    """The line of a random draw that the outputs of a traced program depend on; empty where there is none."""
    reached, queue = set[Any](), [next(n for n in program.graph.nodes if n.op == "output")]
    while queue:
        node = queue.pop()
        if node in reached:
            continue
        reached.add(node)
        queue.extend(node.all_input_nodes)
        name = str(getattr(node.target, "_schema", None) and node.target._schema.name).removeprefix("aten::")
        training = name not in ("dropout", "native_dropout") or any(a is True for a in node.args)
        if name.rstrip("_") in _DRAWS and training:
            return line_of_node(node)
    return ""


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
    loggers = ("torch.fx.experimental.symbolic_shapes", "torch._export", "torch.export")
    with warnings.catch_warnings(), printing_to(io.StringIO()), hushed(loggers, logging.CRITICAL):
        warnings.simplefilter("ignore")
        yield


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class _Wrapper(nn.Module):
    """The user's model with :class:`Traceable` around its forward (inside torch.export's own mode, hence first)."""

    def __init__(self, model: nn.Module, multiple: int, loops: Loops) -> None:
        super().__init__()
        self.model, self.multiple, self.loops = model, multiple, loops
        real = _weights(model)

        def weights() -> list[tuple[Tensor, Tensor]]:  # a closure: the real ones are no constants of the program
            return [(t, real[name]) for name, t in _weights(self.model).items()]

        self.constants = Constants(weights)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The restored picture, then the gate of every call of a described block."""
        if self.multiple > 1:
            factors = [self.multiple, self.multiple]
            image = with_counts(pad_whole(image, [0, 0, 0, 0], "constant", 0.0, factors), factors)
        blocks = dense_blocks(self.model)
        for block in blocks:
            block.gates.clear()
        self.loops.batch = image.shape[0]
        with Traceable(self.loops, self.constants):
            restored = first_tensor(self.model(image))
        gates = [gate for block in blocks for gate in block.gates]
        for block in blocks:
            block.gates = []
        return (restored, *gates)
