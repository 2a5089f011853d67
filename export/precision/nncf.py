"""INT8 through NNCF on the ONNX graph: it also puts element-wise operators into integers, which OpenVINO rewards.

What must stay float32 is the same as for the default engine. The overflow fix halves the range of all weights, not only
of the first layer's (NNCF's default), so that the file is right on CPUs without VNNI.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto

from clusir.errors import BackendError, ExportError, UsageError, first_line
from clusir.export.quantize.float16 import structural_float32
from clusir.export.quantize.integers import ToIntegers
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.saturation import check_pair_sums
from clusir.export.quantize.steps import (
    QuantizeConfig,
    Quantizer,
    QuantizeReport,
    default_steps,
    stamp,
    write_atomically,
)
from clusir.export.quiet import hushed
from clusir.names import install_line
from clusir.runtimes.runners.quiet import unreported

if TYPE_CHECKING:
    from clusir.export.precision.evaluate import Evaluator

__all__ = ["PUT_BACK", "quantize_nncf"]

_ACTING = ("KeepRouting", "KeepLittleArithmetic", "Measure", "Equalise", "ToIntegers")
PUT_BACK = "put back by NNCF"

# Products and sums over many values, and shape arithmetic: integers cost digits there and buy no time.
_FLOAT_TYPES = (
    "MatMul",
    "Gemm",
    "Softmax",
    "Div",
    "Sub",
    "Resize",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Pow",
    "Sqrt",
    "ReduceMean",
)


def quantize_nncf(
    model_path: Path,
    out_path: Path,
    calibration: Calibration,
    config: QuantizeConfig | None = None,
    under_served: Iterable[tuple[int, int]] = (),
    accuracy: tuple[Evaluator, float | None] | None = None,
    float_layers: Iterable[str] = (),
) -> QuantizeReport:
    """Quantise the float32 graph at ``model_path`` with NNCF and write an ONNX file.

    Of ``config`` only the steps that ``_ACTING`` names have a meaning here; any other that is not as in the default is
    refused.
    With ``accuracy``, an evaluator and decibels, NNCF's accuracy control puts operators back to float until the worst
    degradation loses no more than that. ``float_layers``: more layer names to leave in float. Raises BackendError
    where NNCF is not installed, ExportError where it refuses the graph, or where its weights are not right on CPUs
    without VNNI.
    """
    try:
        with unreported():
            import nncf
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    except ImportError as error:
        raise BackendError(
            f"engine nncf: nncf cannot be imported ({error}); "
            f"install it with: {install_line('nncf')}, or use --engine ort"
        ) from error
    config = config or QuantizeConfig()
    evaluator, max_drop_db = accuracy or (None, None)
    acting = _acting(config)
    # The default engine's quantiser knows which layers stay float, and refuses activations that are not finite.
    plain = replace(config, steps=tuple(step for step in config.steps if step.name != "AddBiases"))
    quantizer = Quantizer(model_path, calibration, plain, under_served)
    graph = quantizer.graph
    more = set(float_layers)
    kept = {layer.node for layer in quantizer.layers if layer.keep or layer.name in more}
    ignored = sorted(kept | structural_float32(graph).keys() | _named(graph.model, _FLOAT_TYPES))
    seven_bits = _integers(config).weight_bits == 7
    advanced = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE if seven_bits else OverflowFix.DISABLE)
    options: dict[str, Any] = {
        "subset_size": len(calibration.feeds),
        "ignored_scope": nncf.IgnoredScope(names=ignored, validate=False),
    }
    data = nncf.Dataset([dict(feeds) for feeds in calibration.feeds])
    source = ModelProto()
    source.CopyFrom(graph.model)
    try:
        with unreported(), hushed(("nncf",), logging.ERROR):  # what matters of its notes is in the report
            if evaluator is None or max_drop_db is None:
                model = nncf.quantize(source, data, advanced_parameters=advanced, **options)
            else:
                model = nncf.quantize_with_accuracy_control(
                    source,
                    data,
                    nncf.Dataset(list(range(len(evaluator.samples)))),
                    lambda candidate, numbers: _score(evaluator, candidate, list(numbers)),
                    max_drop=max_drop_db,
                    advanced_quantization_parameters=advanced,
                    **options,
                )
    except Exception as error:  # NNCF raises its own types and those of the runtime below it
        raise ExportError(f"NNCF refuses the graph: {first_line(error)}; use --engine ort") from error
    del model.graph.value_info[:]
    if graph.spec is not None:
        notes = json.dumps({"engine": "nncf", **acting}, sort_keys=True)
        stamp(model, replace(graph.spec, precision="int8"), {"clusir.quantisation": notes})
    onnx.checker.check_model(model)
    if seven_bits:
        check_pair_sums(model)
    write_atomically(model, out_path)
    return _report(model, quantizer, acting)


def _acting(config: QuantizeConfig) -> dict[str, Any]:
    """What of the steps NNCF takes; everything else is the other engine's. Raises UsageError where something else was
    asked for."""
    default, mine = ({step.name: step for step in steps} for steps in (default_steps(), config.steps))
    for name in dict.fromkeys((*default, *mine)):
        if name not in _ACTING and mine.get(name) != default.get(name):
            what = "another" if name in mine and name in default else "the" if name in mine else "no"
            raise UsageError(f"engine nncf does not take {what} step {name}; leave it as it is, or use --engine ort")
    if _integers(config).weight_scale != "channel":
        raise UsageError("engine nncf gives weights a scale per output channel; leave it so, or use --engine ort")
    steps = [step.describe() for step in config.steps if step.name in _ACTING]
    return {"steps": steps, "manifest_sha256": config.manifest_sha256}


def _integers(config: QuantizeConfig) -> ToIntegers:
    return next(step for step in config.steps if isinstance(step, ToIntegers))


def _score(evaluator: Evaluator, candidate: ModelProto, numbers: list[int]) -> tuple[float, list[float]]:
    """100 less the drop in dB on the worst degradation (NNCF divides by it: no loss must not be 0), and each PSNR."""
    loss, values = evaluator.loss_on(candidate, numbers)
    return 100.0 - loss.worst_db, list(values)


def _named(model: ModelProto, types: Iterable[str]) -> set[str]:
    wanted = set(types)
    return {node.name for node in model.graph.node if node.op_type in wanted}


def _report(model: ModelProto, quantizer: Quantizer, acting: dict[str, Any]) -> QuantizeReport:
    producer = {name: node for node in model.graph.node for name in node.output}
    integer = {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        and node.input[0] in producer
        and producer[node.input[0]].op_type == "DequantizeLinear"
    }
    kept = {layer.name: layer.keep for layer in quantizer.layers if layer.keep}
    quantised = tuple(layer.name for layer in quantizer.candidates if layer.node in integer)
    kept |= {layer.name: PUT_BACK for layer in quantizer.candidates if layer.node not in integer}
    return QuantizeReport("nncf", quantised, kept, quantizer.bytes_fp32, model.ByteSize(), acting)
