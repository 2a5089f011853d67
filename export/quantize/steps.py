"""Static INT8 in QDQ form, as a visible list of steps: u8 maps, s8 weights per output channel.

A step takes what is prepared so far and returns it changed (see ``prepared.py``); each lies beside its arithmetic. The
steps up to ``Measure`` choose layers and run the calibration crops, once; the rest only computes, so that a search
builds dozens of variants with other layers in float quickly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from clusir.atomic import whole_file
from clusir.errors import CalibrationError, ExportError
from clusir.export.quantize.bias import AddBiases, CorrectBiases
from clusir.export.quantize.choice import KeepLittleArithmetic, KeepRouting, Measure
from clusir.export.quantize.compact import Compact
from clusir.export.quantize.equalise import Equalise
from clusir.export.quantize.inputs import ScaleInputs
from clusir.export.quantize.integers import ClipRanges, ToIntegers
from clusir.export.quantize.layers import Graph, Layer, load_graph, own_weights
from clusir.export.quantize.names import cleared
from clusir.export.quantize.outputs import ScaleOutputs
from clusir.export.quantize.prepared import Prepared, Step
from clusir.export.quantize.ranges import Calibration, TensorRange
from clusir.export.quantize.rounding import RoundLeastSquares
from clusir.export.quantize.saturation import check_pair_sums
from clusir.export.quantize.siblings import Sibling
from clusir.spec import ModelSpec

__all__ = ["QuantizeConfig", "QuantizeReport", "Quantizer", "default_steps", "quantize_int8", "write_atomically"]


def default_steps() -> tuple[Step, ...]:
    """What measured best (docs/quantisation.md), in order. Not among them: AddResiduals."""
    return (
        KeepRouting(),
        KeepLittleArithmetic(),
        AddBiases(),
        Measure(),
        Equalise(),
        ScaleOutputs(),
        ScaleInputs(),
        ClipRanges("mse"),
        ToIntegers(weight_bits=7),
        RoundLeastSquares(),
        CorrectBiases(),
        Compact(),
    )


@dataclass(frozen=True)
class QuantizeConfig:
    """The list of steps; ``manifest_sha256`` is that of the calibration set and is written into the artefact.

    ``Measure``, ``ClipRanges`` and ``ToIntegers`` are needed, in this order; the others may be left out.
    """

    steps: tuple[Step, ...] = field(default_factory=default_steps)
    manifest_sha256: str = ""

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        order = [names.index(n) for n in ("Measure", "ClipRanges", "ToIntegers") if n in names]
        if len(order) < 3 or order != sorted(order):
            raise ExportError(f"steps {', '.join(names)}: Measure, ClipRanges and ToIntegers are needed, in this order")
        twice = next((name for name in names if names.count(name) > 1), "")
        if twice:
            raise ExportError(f"step {twice} is there twice")
        if {"AddResiduals", "ScaleOutputs"} <= set(names):
            raise ExportError("ScaleOutputs and AddResiduals exclude each other: leave one of them out of the steps")

    def without(self, *names: str) -> QuantizeConfig:
        """The same without these steps. Raises ExportError where there is none of such a name."""
        self._check(names)
        return replace(self, steps=tuple(step for step in self.steps if step.name not in names))

    def having(self, *steps: Step) -> QuantizeConfig:
        """The same with these steps in the place of those of their names. Raises ExportError where there is none."""
        mine = {step.name: step for step in steps}
        self._check(mine)
        return replace(self, steps=tuple(mine.get(step.name, step) for step in self.steps))

    def _check(self, names: Iterable[str]) -> None:
        known = [step.name for step in self.steps]
        wrong = [name for name in names if name not in known]
        if wrong:
            raise ExportError(f"there is no step {wrong[0]!r}; the steps are {', '.join(known)}")

    def to_json(self) -> dict[str, Any]:
        return {"steps": [step.describe() for step in self.steps], "manifest_sha256": self.manifest_sha256}


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
    """One float32 graph that was measured, from which INT8 variants with different float layers are cut quickly.

    ``source``: model.onnx or model.tile.onnx. ``under_served``: (level, expert) pairs that calibration hardly reached;
    their layers stay in float, and so do those that all experts of the level share. ``sibling``: of another graph of
    the model, whose measurements serve where they are the same. Raises CalibrationError where such an expert's layers
    cannot be told from the rest, and on activations that are not finite.
    """

    def __init__(
        self,
        source: Path | ModelProto,
        calibration: Calibration,
        config: QuantizeConfig | None = None,
        under_served: Iterable[tuple[int, int]] = (),
        sibling: Quantizer | None = None,
    ) -> None:
        self.config = config or QuantizeConfig()
        original = load_graph(source)
        self.bytes_fp32 = original.model.ByteSize()
        graph = load_graph(cleared(own_weights(original.model)))
        prepared = Prepared(graph, tuple(graph.layers()), calibration)
        if sibling is not None:
            of = sibling._measured
            prepared = replace(prepared, sibling=Sibling(of.graph, of.statistics, of.calibration))
        reasons = _under_served(prepared.layers, set(under_served))
        names = [step.name for step in self.config.steps]
        before, self._after = names.index("Measure"), self.config.steps[names.index("Measure") + 1 :]
        for step in self.config.steps[:before]:
            prepared = step.apply(prepared)
        prepared = prepared.keeping(reasons)
        self._measured: Prepared = self.config.steps[before].apply(prepared)
        self.layers: list[Layer] = list(self._measured.layers)

    @property
    def candidates(self) -> list[Layer]:
        """Layers that may become integers."""
        return [layer for layer in self.layers if not layer.keep]

    @property
    def graph(self) -> Graph:
        """The float graph, as the steps before the integers leave it: it computes what the source does."""
        return self._run(set(), until="ClipRanges").graph

    @property
    def ranges(self) -> dict[str, TensorRange]:
        """The range of every map that becomes integers."""
        return dict(self._run(set(), until="ToIntegers").ranges)

    def prepare(self, float_layers: Iterable[str] = ()) -> Prepared:
        """The outcome of all steps, with ``float_layers`` left in float besides those that always are."""
        return self._run(set(float_layers))

    def build(self, float_layers: Iterable[str] = ()) -> ModelProto:
        """The INT8 model with ``float_layers`` (layer names) left in float besides those that always are.

        Raises ExportError where the graph has no layer of such a name.
        """
        prepared = self.prepare(float_layers)
        assert prepared.model is not None, "ToIntegers is among the steps"
        self._finish(prepared.model, len(prepared.chosen))
        return prepared.model

    def report(self, model: ModelProto, float_layers: dict[str, str] | None = None) -> QuantizeReport:
        """``float_layers``: layers left in float on top, with the reason."""
        kept = {layer.name: layer.keep for layer in self.layers if layer.keep} | (float_layers or {})
        quantised = tuple(layer.name for layer in self.layers if layer.name not in kept)
        return QuantizeReport("onnxruntime", quantised, kept, self.bytes_fp32, model.ByteSize(), self.config.to_json())

    def _run(self, float_layers: set[str], until: str = "") -> Prepared:
        unknown = sorted(float_layers - {layer.name for layer in self.layers})
        if unknown:
            raise ExportError(
                f"the graph has no layer {unknown[0]!r} to leave in float; its layers are named by their weights, for "
                f"example {self.layers[0].name if self.layers else 'none'}"
            )
        # From the list that everybody sees: whoever changes it changes what is built.
        prepared = replace(self._measured, layers=tuple(self.layers))
        prepared = prepared.keeping(dict.fromkeys(float_layers, "left in float"))
        for step in self._after:
            if step.name == until:
                break
            prepared = step.apply(prepared)
        return prepared

    def _finish(self, model: ModelProto, layers: int) -> None:
        """Metadata (spec with its precision, how it was made), then the checker and the proof of 16-bit sums."""
        del model.graph.value_info[:]
        notes = {"engine": "onnxruntime", "layers": layers, **self.config.to_json()}
        spec = self._measured.graph.spec
        if spec is not None:
            text = json.dumps(notes, sort_keys=True)
            stamp(model, replace(spec, precision="int8"), {"clusir.quantisation": text})
        onnx.checker.check_model(model)
        if any(isinstance(step, ToIntegers) and step.weight_bits == 7 for step in self.config.steps):
            check_pair_sums(model)


def _under_served(layers: Iterable[Layer], under_served: set[tuple[int, int]]) -> dict[str, str]:
    """Layer name to the reason why it stays in float, for experts that calibration hardly reached."""
    layers = list(layers)
    told = {layer.expert for layer in layers if layer.expert is not None}
    for level, expert in sorted(under_served):
        if (level, expert) not in told and (level, -1) not in told:
            raise CalibrationError(
                f"expert {expert} of level {level + 1} saw too few calibration crops and its layers cannot be told "
                "apart by name; give more varied photos with --calibration"
            )
    keep = {pair: f"expert {pair[1]} of level {pair[0] + 1} is under-served by calibration" for pair in under_served}
    reasons = {(level, -1): why for (level, _), why in sorted(keep.items(), reverse=True)} | keep
    return {layer.name: reasons[layer.expert] for layer in layers if layer.expert in reasons and layer.expert}


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
