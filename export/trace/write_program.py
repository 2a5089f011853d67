"""Somebody else's traced program to ONNX, its transforms in one of the forms."""

from __future__ import annotations

import onnx
import torch

from clusir.export.lowering.complex_fft import pair_translations
from clusir.export.lowering.fft import Form, translation_table
from clusir.export.lowering.operators import operator_translations, plain_scalars
from clusir.export.lowering.registry import taught_registry
from clusir.export.trace.anchors import anchor_sizes, entry_sizes
from clusir.export.trace.program import TracedModel, UntraceableError
from clusir.export.trace.writer import OPSET, optimised, quiet_exporter

__all__ = ["write_graph"]


def write_graph(traced: TracedModel, dft: Form) -> tuple[onnx.ModelProto, list[str]]:
    """(the graph, the names of the tensors that hold the gates of described blocks). Its input is ``image``, its output
    ``restored``. Raises UntraceableError with the exporter's reason where it refuses."""
    count = len(traced.program.graph_signature.user_outputs)
    gates = [f"gate_{i}" for i in range(count - 1)]
    plain_scalars(traced.program)
    entry = entry_sizes(traced.program)
    with quiet_exporter(), taught_registry():
        try:
            program = torch.onnx.export(
                traced.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["restored", *gates],
                custom_translation_table={**operator_translations(), **pair_translations(translation_table(dft))},
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            while error.__cause__ is not None and isinstance(error.__cause__, Exception):
                error = error.__cause__
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UntraceableError(f"torch.onnx.export refused the traced model: {reason}") from error
    model = optimised(program)
    anchor_sizes(model, entry)
    return model, gates
