"""Static INT8 in QDQ form through onnxruntime.quantization: u8 activations, s8 weights per output channel.

Weights use 7 of their 8 bits by default: on x86 CPUs without VNNI the 16-bit intermediate sums of u8 x s8 kernels
saturate otherwise (255 * 127 * 2 > 32767, while 255 * 64 * 2 fits), and an artefact must be right on every CPU.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from clusir.errors import CalibrationError, ExportError
from clusir.export.quantize.bias import add_zero_biases, correct_biases
from clusir.export.quantize.compact import share_constants, store_as_float16, store_as_int8
from clusir.export.quantize.equalise import equalise
from clusir.export.quantize.inputs import input_scales, scale_inputs
from clusir.export.quantize.layers import FIRST, Graph, Layer, load_graph, own_weights
from clusir.export.quantize.outputs import Scales, output_scales, scale_outputs
from clusir.export.quantize.ranges import CLIPPING, Calibration, TensorRange, collect_ranges, owners_of
from clusir.export.quantize.rounding import Moments, input_moments, round_weights
from clusir.export.quantize.saturation import check_pair_sums
from clusir.runtimes.images.atomic import whole_file
from clusir.spec import ModelSpec

__all__ = ["QuantizeConfig", "QuantizeReport", "Quantizer", "quantize_int8", "write_atomically"]

_LITTLE = "little arithmetic"


@dataclass(frozen=True)
class QuantizeConfig:
    """``clipping``: ``minmax``, ``percentile`` or ``mse``. ``reduce_range``: 7-bit weights, right on every CPU.

    ``dense_only`` leaves convolutions in float that integers hardly make faster. ``exact_routing`` leaves in float what
    the graph's own routers see. ``equalise`` scales the hidden channels between two convolutions to like ranges.
    ``scale_outputs`` and ``scale_inputs`` give maps that float sums read or write a scale per channel.
    ``least_squares`` rounds weights for the least error of their layer's output (see ``quantize_rounding``), not each
    to the nearest integer. ``bias_correction`` takes the mean error that rounding weights leaves back out through the
    bias. ``residuals`` puts the additions behind integer layers into integers too. ``compact`` makes the file smaller
    (see ``quantize_compact``).
    The defaults are what measured best: see docs/quantisation.md. ``manifest_sha256`` is that of the calibration set
    and is written into the artefact.
    """

    clipping: str = "mse"
    reduce_range: bool = True
    per_channel: bool = True
    dense_only: bool = True
    exact_routing: bool = True
    equalise: bool = True
    scale_outputs: bool = True
    scale_inputs: bool = True
    least_squares: bool = True
    bias_correction: bool = True
    residuals: bool = False
    compact: bool = True
    manifest_sha256: str = ""

    def __post_init__(self) -> None:
        if self.clipping not in CLIPPING:
            raise ExportError(f"clipping {self.clipping!r} is not one of {', '.join(CLIPPING)}")


@dataclass(frozen=True)
class QuantizeReport:
    """What became of each layer. ``kept``: layer name to the reason it stays in float. Sizes in bytes."""

    engine: str
    quantised: tuple[str, ...]
    kept: dict[str, str]
    bytes_fp32: int
    bytes_int8: int
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def size_ratio(self) -> float:
        return self.bytes_int8 / self.bytes_fp32

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "quantised": list(self.quantised),
            "notes": list(self.notes),
            "size_ratio": self.size_ratio,
        }

    def to_markdown(self) -> str:
        lines = [
            f"INT8 by {self.engine}: {len(self.quantised)} layers in integers, {len(self.kept)} in float; "
            f"{self.bytes_int8 / 1e6:.2f} MB against {self.bytes_fp32 / 1e6:.2f} MB ({self.size_ratio:.2f}x).",
            "",
            "| kept in float | why |",
            "|---|---|",
            *(f"| `{name}` | {why} |" for name, why in self.kept.items()),
        ]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


class Quantizer:
    """One float32 graph with its ranges, from which INT8 variants with different float layers are cut quickly.

    ``source``: model.onnx or model.tile.onnx. ``under_served``: (level, expert) pairs that calibration hardly reached;
    their layers stay in float, and so do those that all experts of the level share. Raises CalibrationError where such
    an expert's layers cannot be told from the rest, and on activations that are not finite.
    """

    def __init__(
        self,
        source: Path | ModelProto,
        calibration: Calibration,
        config: QuantizeConfig | None = None,
        under_served: Iterable[tuple[int, int]] = (),
    ) -> None:
        config = config or QuantizeConfig()
        # Additions in integers take the place of the scales in front of float sums; what is recorded is what acts.
        self.config = replace(config, scale_outputs=False) if config.residuals else config
        original = load_graph(source)
        owned = load_graph(own_weights(original.model))
        self.graph: Graph = load_graph(add_zero_biases(owned)) if self.config.bias_correction else owned
        self.bytes_fp32 = original.model.ByteSize()
        if self.config.equalise:
            self.graph = equalise(self.graph, calibration)
        layers = self._keep_by_choice(self.graph.layers())
        self.layers: list[Layer] = self._keep_under_served(layers, set(under_served))
        self._unscaled = self.graph.model
        self._output_scales: Scales = {}
        if self.config.scale_outputs and not self.config.residuals:
            owners = owners_of(self.graph, layers)
            self._output_scales = output_scales(self.graph, self.candidates, calibration, owners)
            self.graph = load_graph(scale_outputs(self._unscaled, self._output_scales))
        self._input_scales: Scales = {}
        if self.config.scale_inputs:
            owners = owners_of(self.graph, layers)
            self._input_scales = input_scales(self.graph, self.candidates, calibration, owners)
            self.graph = load_graph(scale_inputs(self.graph.model, self._input_scales))
        owners = owners_of(self.graph, layers)
        tensors = self._tensors()
        self.ranges: dict[str, TensorRange] = collect_ranges(
            self.graph, tensors, calibration, owners, self.config.clipping
        )
        self.layers = [
            replace(layer, keep="its expert saw no calibration crop")
            if not layer.keep and not self._touched(layer) <= self.ranges.keys()
            else layer
            for layer in self.layers
        ]
        self._rounded: dict[tuple[str, bytes], onnx.TensorProto] = {}
        self._moments: Moments = {}
        if self.config.least_squares:
            self._moments = input_moments(self.graph, self.candidates, calibration, owners)

    @property
    def candidates(self) -> list[Layer]:
        """Layers that may become integers."""
        return [layer for layer in self.layers if not layer.keep]

    def build(self, float_layers: Iterable[str] = ()) -> ModelProto:
        """The INT8 model with ``float_layers`` (layer names) left in float besides those that always are.

        Raises ExportError where the graph has no layer of such a name.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        names = set(float_layers)
        unknown = sorted(names - {layer.name for layer in self.layers})
        if unknown:
            raise ExportError(
                f"the graph has no layer {unknown[0]!r} to leave in float; its layers are named by their weights, for "
                f"example {self.layers[0].name if self.layers else 'none'}"
            )
        chosen = [layer for layer in self.candidates if layer.name not in names]
        scales = {layer.name: self._output_scales[layer.name] for layer in chosen if layer.name in self._output_scales}
        model = scale_outputs(self._unscaled, scales)
        inputs = {layer.name: self._input_scales[layer.name] for layer in chosen if layer.name in self._input_scales}
        model = scale_inputs(model, inputs)
        if chosen:
            additions = self._additions(chosen) if self.config.residuals else []
            wanted = {tensor for layer in chosen for tensor in self._touched(layer)}
            wanted |= {tensor for node in additions for tensor in (*node.input, *node.output)}
            data = {
                name: TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
                for name, found in self.ranges.items()
                if name in wanted
            }
            nodes = {layer.node for layer in chosen}
            nodes |= {node.name for node in additions}
            nodes |= {relu.name for layer in chosen if (relu := self._relu_behind(layer)) is not None}
            quantizer = QDQQuantizer(
                model,
                self.config.per_channel,
                self.config.reduce_range,
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                sorted(nodes),
                [],
                ["Conv", "ConvTranspose", "Relu", "Add"],
                {"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            level = logging.getLogger().level
            logging.getLogger().setLevel(logging.ERROR)
            try:
                quantizer.quantize_model()
            finally:
                logging.getLogger().setLevel(level)
            quantizer.model.topological_sort()
            model = quantizer.model.model
            if self._moments:
                round_weights(model, self.graph, chosen, self.ranges, self._moments, self._rounded)
            if self.config.bias_correction:
                correct_biases(model, self.graph, {layer.name: layer for layer in chosen}, self.ranges)
        self._finish(model, chosen)
        return model

    def report(self, model: ModelProto, float_layers: dict[str, str] | None = None) -> QuantizeReport:
        """``float_layers``: layers left in float on top, with the reason."""
        kept = {layer.name: layer.keep for layer in self.layers if layer.keep} | (float_layers or {})
        quantised = tuple(layer.name for layer in self.layers if layer.name not in kept)
        config = asdict(self.config)
        return QuantizeReport("onnxruntime", quantised, kept, self.bytes_fp32, model.ByteSize(), config)

    def _keep_by_choice(self, layers: list[Layer]) -> list[Layer]:
        seen = self.graph.nodes_before_routing() if self.config.exact_routing else set()
        chosen = []
        for layer in layers:
            keep = layer.keep
            if not keep and layer.node in seen:
                keep = "a router sees it"
            elif not keep and self.config.dense_only and not layer.dense:
                keep = _LITTLE
            chosen.append(replace(layer, keep=keep))
        return chosen

    def _keep_under_served(self, layers: list[Layer], under_served: set[tuple[int, int]]) -> list[Layer]:
        told = {layer.expert for layer in layers if layer.expert is not None}
        for level, expert in sorted(under_served):
            if (level, expert) not in told and (level, -1) not in told:
                raise CalibrationError(
                    f"expert {expert} of level {level + 1} saw too few calibration crops and its layers cannot be told "
                    "apart by name; give more varied photos with --calibration"
                )
        keep = {
            pair: f"expert {pair[1]} of level {pair[0] + 1} is under-served by calibration" for pair in under_served
        }
        shared = {(level, -1): why for (level, _), why in sorted(keep.items(), reverse=True)}
        reasons = shared | keep
        return [
            replace(layer, keep=reasons[layer.expert])
            if not layer.keep and layer.expert is not None and layer.expert in reasons
            else layer
            for layer in layers
        ]

    def _relu_behind(self, layer: Layer) -> onnx.NodeProto | None:
        """The ReLU that alone reads the layer: the range of its output, which starts at 0, absorbs it."""
        output = self.graph.node(layer).output[0]
        readers = self.graph.consumers.get(output, [])
        alone = len(readers) == 1 and readers[0].op_type == "Relu" and output not in self.graph.outputs
        return readers[0] if alone else None

    def _touched(self, layer: Layer) -> set[str]:
        node, relu = self.graph.node(layer), self._relu_behind(layer)
        return {node.input[0], node.output[0], *(relu.output if relu is not None else ())}

    def _additions(self, chosen: list[Layer]) -> list[onnx.NodeProto]:
        """Sums of two maps of which one comes straight from a chosen layer or from another such sum."""
        found: list[onnx.NodeProto] = []
        integer = {name for layer in chosen for name in self._touched(layer) - {self.graph.node(layer).input[0]}}
        outside = {*self.graph.inputs, *self.graph.outputs}
        for node in self.graph.model.graph.node:
            names = {*node.input, *node.output}
            if node.op_type != "Add" or names & (self.graph.initialisers.keys() | outside):
                continue
            shapes = [self.graph.shapes.get(name, ()) for name in (*node.input, *node.output)]
            if integer & set(node.input) and len(shapes[0]) == 4 and shapes.count(shapes[0]) == 3:
                found.append(node)
                integer |= set(node.output)
        return found

    def _tensors(self) -> list[str]:
        tensors = {tensor for layer in self.candidates for tensor in self._touched(layer)}
        if self.config.residuals:
            tensors |= {n for node in self._additions(self.candidates) for n in (*node.input, *node.output)}
        return sorted(tensors)

    def _finish(self, model: ModelProto, chosen: list[Layer]) -> None:
        """Smaller constants, metadata (spec with its precision, how it was made), then the checker."""
        del model.graph.value_info[:]
        if self.config.compact and chosen:
            share_constants(model)
            store_as_int8(model, {layer.name for layer in self.layers if layer.keep == _LITTLE})
            # Rounding the weights that read the picture to float16 moves the brightness of dark ones by 0.001.
            store_as_float16(model, {layer.name for layer in self.layers if layer.keep == FIRST})
        notes = {"engine": "onnxruntime", "layers": len(chosen), **asdict(self.config)}
        if self.graph.spec is not None:
            stamp(
                model,
                replace(self.graph.spec, precision="int8"),
                {"clusir.quantisation": json.dumps(notes, sort_keys=True)},
            )
        onnx.checker.check_model(model)
        if self.config.reduce_range:
            check_pair_sums(model)


def stamp(model: ModelProto, spec: ModelSpec, more: dict[str, str]) -> None:
    """Replace the model's metadata by ``spec`` and ``more``; keys of others stay."""
    mine = spec.to_metadata() | more
    entries = {entry.key: entry.value for entry in model.metadata_props} | mine
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))


def write_atomically(model: ModelProto, path: Path) -> None:
    """Write beside the target first, then rename: no half file is ever seen. Raises ExportError where it cannot."""
    try:
        with whole_file(path) as stream:
            stream.write(model.SerializeToString())
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written ({error.strerror or error}); check the folder and the disk"
        ) from error


def quantize_int8(
    model_path: Path,
    out_path: Path,
    calibration: Calibration,
    config: QuantizeConfig | None = None,
    *,
    under_served: Iterable[tuple[int, int]] = (),
    float_layers: dict[str, str] | None = None,
) -> QuantizeReport:
    """Quantise the float32 graph at ``model_path`` (whole or tile) to ``out_path``.

    ``calibration`` holds feeds for this very graph (see ``quantize_data.calibrate``); ``float_layers``: layer name to
    the reason why it stays in float. Inputs and outputs stay float32. Raises CalibrationError, ExportError.
    """
    quantizer = Quantizer(model_path, calibration, config, under_served)
    model = quantizer.build(float_layers or ())
    write_atomically(model, out_path)
    return quantizer.report(model, float_layers)
