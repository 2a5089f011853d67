"""INT8 for hosts: the graph rounded by clusir's quantiser, with scales that calibration found. A runtime with a format
of its own writes those scales its own way. What a file loses is measured before it takes its place, on degraded photos
that calibrated nothing, and in the runtime itself where it has a format of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from clusir.calibration.balance import BalanceConfig
from clusir.calibration.model_source import for_model
from clusir.calibration.sources import hold_out, open_source
from clusir.errors import BudgetError
from clusir.export.formats.hosts.base import Array, Source
from clusir.export.precision.loss import Run, compare_quality, measure_quality
from clusir.export.precision.run import PrecisionConfig, evaluation_samples
from clusir.export.quantize.data import Reference, crop_px_of, draw_calibration
from clusir.export.quantize.layers import load_graph
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

__all__ = ["Int8Config", "IntegerGraph", "Integers", "read_integers", "without_rounding"]

Answers = Callable[[ModelProto | None], list[Array]]


@dataclass(frozen=True)
class Int8Config:
    """``calibration``: a folder of photos (None: the built-in ones). ``evaluation_crops`` of every degradation measure
    the loss, which may be ``mean_db`` in the mean and ``worst_db`` for any degradation, against the float32 file."""

    calibration: Path | None = None
    seed: int = 0
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    evaluation_crops: int = 4
    mean_db: float = 0.15
    worst_db: float = 0.4


class Integers:
    """What calibrates and measures the INT8 graphs of one source, drawn once: crops of ``side_px``, which is the size
    of the host's graph, or of 0 the size that is usual for open ones. Raises CalibrationError where the photos do not
    suffice."""

    def __init__(self, source: Source, side_px: int, config: Int8Config) -> None:
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            onnx.save(source.model, str(path))
            reference = Reference(path)
        self.source, spec = source, source.spec
        crop_px = spec.scale * (side_px or crop_px_of(spec))
        calibrating, held = hold_out(open_source(config.calibration, crop_px, config.seed))
        made, measuring = (
            None if photos is None else for_model(photos, spec.scale, spec.channels) for photos in (calibrating, held)
        )
        assert made is not None
        self._draw, _ = draw_calibration(made, reference, config.balance)
        asked = PrecisionConfig(
            calibration=config.calibration, seed=config.seed, evaluation_crops=config.evaluation_crops
        )
        self.notes: list[str] = []
        self.samples = evaluation_samples(measuring, crop_px, (spec.scale, spec.channels), asked, self.notes)
        self._experts = reference.experts
        graph = load_graph(source.model)
        seen = graph.nodes_before_routing()
        names = [layer.name for layer in graph.layers() if layer.node in seen]
        # As the source has them, and with what host_form puts before every name.
        self.seen_by_routers = (*names, *(f"net/{name}" for name in names))

    def quantizer(self, model: ModelProto) -> Quantizer:
        """Of a graph in the host form, as the host rewrites it: one picture in, one out, of one size."""
        # Constants that are stored smaller are ONNX's own form.
        return self._of(model, [sample.image for sample in self._draw.samples], QuantizeConfig().without("Compact"))

    def quantizer_of_source(self) -> Quantizer:
        """Of the graph as it came, for hosts that read ONNX: it is given the host form afterwards."""
        low, high = self.source.spec.value_range
        images = [np.asarray(sample.image * (high - low) + low, np.float32) for sample in self._draw.samples]
        return self._of(self.source.model, images, QuantizeConfig())

    def _of(self, model: ModelProto, images: Sequence[Array], config: QuantizeConfig) -> Quantizer:
        feeds = [{model.graph.input[0].name: image} for image in images]
        keys = [sample.key for sample in self._draw.samples]
        calibration = Calibration(feeds, keys, self._draw.gates, self._experts)
        return Quantizer(model, calibration, config, self._draw.coverage.under_served)

    def variants(self, quantizer: Quantizer) -> Iterator[tuple[str, ModelProto]]:
        """What to try, the fastest first: all dense layers in integers; and, of a routed network, all that no router
        sees, which then decides as in float32. Each with what it leaves in float."""
        known = {layer.name for layer in quantizer.candidates}
        kept = known & set(self.seen_by_routers)
        yield "", quantizer.build()
        if kept and kept != known:
            yield "what the routers see stays in float32", quantizer.build(kept)

    def first_within(
        self,
        host: str,
        quantizer: Quantizer,
        answers: Callable[[ModelProto | None], list[Array]],
        bars: tuple[float, float],
    ) -> str:
        """Try the variants until one loses no more than ``bars``, in the mean and for any degradation, in dB; what that
        one loses, in a sentence. ``answers``: what the host makes of the samples with a variant, or with the float32
        file for None. Raises BudgetError where every variant loses more."""
        base = measure_quality(_reading(answers(None)), self.samples)
        losses = []
        for note, rounded in self.variants(quantizer):
            loss = compare_quality(base, measure_quality(_reading(answers(rounded)), self.samples))
            told = f"loses {loss.mean_db:.3f} dB in the mean, {loss.worst_db:.3f} at most ({loss.worst})"
            losses.append(told)
            if loss.mean_db <= bars[0] and loss.worst_db <= bars[1]:
                return f"{told}, on {len(self.samples)} degraded photos" + (f"; {note}" if note else "")
        raise BudgetError(
            f"--target {host}: INT8 {'; then, what the routers see left in float32, '.join(losses)}; allowed are "
            f"{bars[0]} and {bars[1]} dB. Leave --precision int8 out, or give other photos with --calibration"
        )


def _reading(answers: list[Array]) -> Run:
    """The answers, one a sample, as what measures quality asks for them."""

    def run(number: int) -> tuple[Array, None]:
        return answers[number], None

    return run


@dataclass(frozen=True)
class IntegerGraph:
    """A graph with its weights in float, each a multiple of its ``steps`` (by the weight's name: one for every output
    channel, or one); maps are rounded by QuantizeLinear and DequantizeLinear."""

    model: ModelProto
    steps: Mapping[str, NDArray[np.float32]]


def read_integers(model: ModelProto) -> IntegerGraph:
    """Of a graph of the quantiser's."""
    out = ModelProto()
    out.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in out.graph.initializer}
    steps: dict[str, NDArray[np.float32]] = {}
    left = []
    for node in out.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            left.append(node)
            continue
        integers, step = constants[node.input[0]], np.asarray(constants[node.input[1]], np.float32)
        if step.size > 1:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % integers.ndim
            shaped = step.reshape([-1 if index == axis else 1 for index in range(integers.ndim)])
        else:
            shaped = step.reshape(())
        value = (integers.astype(np.float32) * shaped).astype(np.float32)
        out.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        if integers.dtype == np.int8:
            steps[node.output[0]] = step.reshape(-1)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    used = [tensor for tensor in out.graph.initializer if tensor.name in read]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    return IntegerGraph(out, steps)


def without_rounding(graph: IntegerGraph) -> tuple[ModelProto, dict[str, float]]:
    """The graph with its maps as they are, and the largest magnitude that the input of each layer in integers has, by
    the name of its weights: for a runtime that rounds inside its layers."""
    out = ModelProto()
    out.CopyFrom(graph.model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in out.graph.initializer}
    peaks: dict[str, float] = {}
    names: dict[str, str] = {}
    left = []
    for node in out.graph.node:
        given = [names.get(name, name) for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            step, zero = float(constants[node.input[1]]), int(constants[node.input[2]])
            names[node.output[0]] = given[0]
            # What is below 0 ends here, and the quantiser has removed the ReLU before it.
            if node.op_type == "QuantizeLinear" and zero == 0:
                names[node.output[0]] = f"{node.output[0]}/relu"
                left.append(onnx.helper.make_node("Relu", [given[0]], [f"{node.output[0]}/relu"]))
            peaks[node.output[0]] = max(zero, 255 - zero) * step
            continue
        if len(node.input) > 1 and node.input[1] in graph.steps:
            peaks[node.input[1]] = peaks[node.input[0]]
        node.input[:] = given
        left.append(onnx.NodeProto.FromString(node.SerializeToString()))
    renamed = [value.name for value in out.graph.output if value.name in names]
    left.extend(onnx.helper.make_node("Identity", [names[name]], [name]) for name in renamed)
    del out.graph.node[:]
    out.graph.node.extend(left)
    return out, {name: peak for name, peak in peaks.items() if name in graph.steps}
