"""Module or traced program to ONNX: torch.onnx.export, the FFT lowered at the level of the program, opset 18."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from clusir.errors import ExportError
from clusir.export.lowering.complex_fft import pair_translations
from clusir.export.lowering.fft import Form, translation_table
from clusir.export.lowering.operators import floored_divisions, operator_translations, plain_scalars
from clusir.export.lowering.registry import taught_registry
from clusir.export.quiet import hushed, printing_to
from clusir.export.subjects.user_code import line_of_node
from clusir.export.trace.anchors import anchor_sizes, entry_sizes
from clusir.export.trace.decompose import quick_decompositions
from clusir.export.trace.program import TracedModel, UntraceableError
from clusir.export.trace.quick import quick_tracing, quick_views
from clusir.export.trace.rules import rewriting_rules

__all__ = ["OPSET", "name_axes", "optimised", "quiet_exporter", "write_onnx", "write_program"]

# Opset 20's DFT with dynamic shapes fails in ONNX Runtime 1.32, and OpenVINO returns wrong shapes for it (measured).
OPSET = 18


def write_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    dynamic_size: bool,
    dft: Form = "matmul",
) -> onnx.ModelProto:
    """Trace ``module`` on ``example`` (batch of at least 2) and return it as ONNX.

    The batch axis of every input whose example has more than one is dynamic; with ``dynamic_size`` also axes 2 and 3 of
    every input of rank 4. Raises ExportError with the exporter's reason where it cannot.
    """
    dim = torch.export.Dim.DYNAMIC
    axes = [() if len(t) == 1 else (0, 2, 3) if dynamic_size and t.ndim == 4 else (0,) for t in example]
    shapes = tuple(dict.fromkeys(free, dim) for free in axes)
    try:
        with quick_decompositions():
            return _written(module, example, inputs, outputs, translation_table(dft), dynamic_shapes=shapes)
    except _RefusedError as error:
        raise ExportError(str(error)) from error.__cause__


def write_program(traced: TracedModel, dft: Form = "matmul") -> tuple[onnx.ModelProto, list[str]]:
    """The same of a traced program with whatever operators: (the graph, the names of the tensors that hold the gates of
    described blocks). Its input is ``image``, its output ``restored``. Raises UntraceableError where it is refused."""
    gates = [f"gate_{i}" for i in range(len(traced.program.graph_signature.user_outputs) - 1)]
    plain_scalars(traced.program)
    floored_divisions(traced.program)
    entry = entry_sizes(traced.program)
    table = {**operator_translations(), **pair_translations(translation_table(dft))}
    try:
        with _unguarded(traced.program), quick_decompositions(), quick_views():
            model = _written(traced.program, (), ["image"], ["restored", *gates], table)
    except _RefusedError as error:
        raise UntraceableError(str(error)) from error.__cause__
    anchor_sizes(model, entry)
    return model, gates


@contextlib.contextmanager
def _unguarded(program: torch.export.ExportedProgram) -> Iterator[None]:
    """The exporter runs a program once more to decompose it, and would prove every guard of the trace again: minutes
    for a hundred. They are back afterwards, since they say for which sizes the program is."""
    guards = program._guards_code
    program._guards_code = []
    try:
        yield
    finally:
        program._guards_code = guards


class _RefusedError(Exception):
    """The exporter's reason, in one line."""


def _written(
    source: nn.Module | torch.export.ExportedProgram,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    table: Mapping[Any, Any],
    **more: Any,
) -> onnx.ModelProto:
    with quiet_exporter(), taught_registry(), quick_tracing():
        try:
            program = torch.onnx.export(
                source,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=dict(table),
                optimize=False,
                verbose=False,
                **more,
            )
            return optimised(program)
        except Exception as error:
            raise _RefusedError(_reason(error)) from error


def optimised(program: torch.onnx.ONNXProgram | None) -> onnx.ModelProto:
    """A program written with ``optimize=False``, folded and rewritten by onnxscript's rules, and its axes named.

    Three quarters of the nodes fall to constant folding, which therefore comes first. Raises ExportError where there is
    no program.
    """
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import rewriter
    from onnxscript.optimizer import fold_constants

    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    rules = rewriting_rules()
    with quiet_exporter():
        common.InlinePass()(program.model)
        fold_constants(program.model)
        onnx_ir.passes.Sequential(
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
        )(program.model)
        for _ in range(2):
            fold_constants(program.model)
            rewriter.rewrite(program.model, rules)
        onnx_ir.passes.Sequential(
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        )(program.model)
    model = program.model_proto
    name_axes(model)
    return model


def name_axes(model: onnx.ModelProto) -> None:
    """Give the dynamic axes readable names: batch, height, width. The tracer's symbols are renamed wherever they occur,
    so that passes which compare shapes by name still see an input's axis and an inner one as the same."""
    renamed: dict[str, str] = {}
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        for axis, name in zip(range(len(dims)), ("batch", "channels", "height", "width"), strict=False):
            if not dims[axis].HasField("dim_value"):
                renamed.setdefault(dims[axis].dim_param, name)
                dims[axis].dim_param = name
    symbols = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in renamed if old.isidentifier()) or "(?!)")
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = symbols.sub(lambda match: renamed[match.group()], dim.dim_param)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, with the user's: the exporter wraps it in pages of advice."""
    node = _node_in_hand(error)
    while error.__cause__ is not None:
        error = error.__cause__
        node = _node_in_hand(error) or node
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    if node is None:
        return f"torch.onnx.export refused the model: {type(error).__name__}: {said}"
    if type(error).__name__ == "DispatchError":
        return f"{line_of_node(node)}: {node.target} has no ONNX form; write it with other operators"
    return f"{line_of_node(node)}: torch.onnx.export failed at {node.target}: {type(error).__name__}: {said}"


def _node_in_hand(error: BaseException) -> fx.Node | None:
    """The operator that the exporter was writing: its messages name it, but not where it stands in the user's code."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        found = node if isinstance(node, fx.Node) else found
    return found


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hold back the exporter's progress, deprecation notes and torchvision remarks: none is about the user's model."""
    loggers = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx")
    with warnings.catch_warnings(), printing_to(io.StringIO()), hushed(loggers, logging.ERROR):
        warnings.simplefilter("ignore")
        yield
