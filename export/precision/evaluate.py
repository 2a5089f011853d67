"""Measuring variants of one graph on the same crops: in memory with ONNX Runtime, or as a file on any backend."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path

from onnx import ModelProto

from clusir.calibration.base import Sample
from clusir.export.graph.session import Array, Feeds, Probe
from clusir.export.precision.loss import Quality, QualityLoss, compare_quality, measure_quality
from clusir.export.quantize.data import Reference, make_feeds
from clusir.export.quantize.layers import load_graph

__all__ = ["Evaluator"]


@dataclass
class Evaluator:
    """Quality loss against the same graph in float32 on ``samples`` (each with truth).

    ``graph`` is the float32 file whose variants are measured: the whole graph, or the tile graph, which is then given
    the float32 routing of each picture. What the router says of one window and what the whole graph says of it differ
    a little where a router looks at its middle alone: a tile is held against the tile. ``known``: what the reference,
    the whole graph, makes of the samples, where that was measured.
    """

    reference: Reference
    samples: Sequence[Sample]
    graph: Path
    known: InitVar[Quality | None] = None
    feeds: list[Feeds] = field(init=False)
    base: Quality = field(init=False)
    _whole: Quality = field(init=False, repr=False)

    def __post_init__(self, known: Quality | None) -> None:
        def run(number: int) -> tuple[Array, Array | None]:
            outputs = self.reference.run(self.samples[number].image)
            return outputs[self.reference.output_name], outputs.get("gate")

        # First: the feeds then hold what the reference decided in these runs.
        self._whole = measure_quality(run, self.samples) if known is None else known
        self.feeds = make_feeds(self.graph, self.samples, self.reference)
        self.base = self._whole if len(self.feeds[0]) == 1 else self._quality(Probe(load_graph(self.graph).model))

    def of(self, graph: Path) -> Evaluator:
        """The same for another graph of the model; the reference is not run again."""
        return Evaluator(self.reference, self.samples, graph, self._whole)

    @property
    def sha256(self) -> str:
        """Identity of the evaluation crops."""
        return hashlib.sha256("".join(s.sha256 for s in self.samples).encode()).hexdigest()

    def loss(self, model: ModelProto) -> QualityLoss:
        """Of a model in memory, with ONNX Runtime on the CPU. Raises ExportError where it does not run."""
        return self.loss_on(model, range(len(self.samples)))[0]

    def loss_on(self, model: ModelProto, numbers: Sequence[int]) -> tuple[QualityLoss, tuple[float, ...]]:
        """The loss on some of the samples, by number, and the model's PSNR (dB) on each of them."""
        quality = self._quality(Probe(model), numbers)
        return compare_quality(self.base.subset(numbers), quality), quality.psnr_db

    def _quality(self, probe: Probe, numbers: Sequence[int] | None = None) -> Quality:
        chosen = range(len(self.samples)) if numbers is None else numbers

        def run(position: int) -> tuple[Array, Array | None]:
            outputs = probe.run(self.feeds[chosen[position]])
            return outputs[self.reference.output_name], outputs.get("gate")

        return measure_quality(run, [self.samples[number] for number in chosen])

    def loss_of_file(self, path: Path, backend: str, *, bf16: bool = False) -> QualityLoss:
        """Of a file on a backend of this machine. Raises BackendError where that backend is not installed."""
        return compare_quality(self.base, self.quality_of_file(path, backend, bf16=bf16))

    def quality_of_file(self, path: Path, backend: str, *, bf16: bool = False) -> Quality:
        """What a file makes of the samples on a backend of this machine; ``bf16``: computed in bfloat16."""
        from clusir.runtimes import open_runner

        with open_runner(path, backend=backend, device="cpu", bf16=bf16) as runner:

            def run(number: int) -> tuple[Array, Array | None]:
                outputs = runner.run(self.feeds[number])
                return outputs[self.reference.output_name], outputs.get("gate")

            return measure_quality(run, self.samples)
